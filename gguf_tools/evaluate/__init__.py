"""`gguf_tools.evaluate`, the function of the public API, as a package too, for `import gguf_tools.evaluate.harness`.

Importing a submodule binds its package to the name that the function has. The function therefore takes the package's place.
"""

from __future__ import annotations

import sys

from gguf_tools.api.evaluate import evaluate

vars(evaluate).update(__path__=__path__, __spec__=__spec__)
sys.modules[__name__] = evaluate  # type: ignore[assignment]
