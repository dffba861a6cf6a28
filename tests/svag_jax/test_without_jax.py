"""What svag is where jax or optax is not installed."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
import svag
from svag.errors import MissingPackage
svag.MSVAG, svag.METHODS
for module in ("svag.jax", "svag.jax.methods"):
    try:
        __import__(module)
    except MissingPackage as error:
        assert isinstance(error, ImportError)
        assert str(error) == "svag.jax needs jax and optax: pip install 'svag[jax]'", error
    else:
        raise SystemExit("no error")
"""


@pytest.mark.parametrize("package", ["jax", "optax"])
def test_svag_is_imported_and_svag_jax_names_the_extra(package: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT, package], check=True)
