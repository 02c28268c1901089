"""How `make app` serves the page of explorers: settings of Voila."""

import os
from pathlib import Path

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

HERE = Path(__file__).resolve().parent
# Jupyter looks for voila/templates/ in the folders of this list
os.environ["JUPYTER_PATH"] = os.pathsep.join(
    [str(HERE.parent), *filter(None, [os.environ.get("JUPYTER_PATH")])]
)


class PageKernelManager(AsyncMappingKernelManager):
    """Ends kernels whose page is gone, but not those that wait for their first page."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.opened = set()

    def notify_connect(self, kernel_id):
        self.opened.add(kernel_id)
        super().notify_connect(kernel_id)

    async def cull_kernel_if_idle(self, kernel_id):
        if kernel_id in self.opened:
            await super().cull_kernel_if_idle(kernel_id)


c = get_config()  # noqa: F821, a name that Jupyter gives to its configuration files
c.Voila.ip = "127.0.0.1"  # for this machine's own browser alone
c.Voila.open_browser = False
c.VoilaConfiguration.template = "sginet"
c.VoilaConfiguration.show_tracebacks = False
# a kernel with the first picture computed waits for the next page
c.VoilaConfiguration.preheat_kernel = True
c.VoilaConfiguration.default_pool_size = 1
# a page that is asked for while its kernel computes waits for what the cell displays
c.VoilaExecutor.iopub_timeout = 120  # seconds; 4 left the page empty on a busy machine
c.VoilaConfiguration.multi_kernel_manager_class = PageKernelManager
c.PageKernelManager.cull_idle_timeout = 120  # seconds without a page
c.PageKernelManager.cull_interval = 20
c.PageKernelManager.cull_connected = False
# the page's last request, which ends its kernel, carries no token and was refused
c.Voila.tornado_settings = {"disable_check_xsrf": True}
