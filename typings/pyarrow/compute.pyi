# pyarrow is compiled and makes most of its names at import, where no type checker sees them: any name is accepted.
from typing import Any

def __getattr__(name: str) -> Any: ...
