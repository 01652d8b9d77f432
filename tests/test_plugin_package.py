"""An outside author's package, `plugin_package`, installed by pip: it is found through its entry point, and its own tests
pass in processes that know nothing else of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "plugin_package"
#: No network: nothing is fetched, and setuptools, which torch depends on, builds.
INSTALL = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


def run(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_package_from_outside_installs_and_passes_the_contracts(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    run(*INSTALL, "--target", site, source)
    shutil.rmtree(source / "neuralop_legendre")  # what is tested is what was installed
    path = os.pathsep.join([str(site), *sys.path])
    report = run("pytest", "-q", "-W", "error::RuntimeWarning", "-p", "no:cacheprovider", source, PYTHONPATH=path)
    assert " passed" in report
    assert "skipped" not in report
