"""Find the packages below the three source roots; everything else stands in setup.cfg."""

from setuptools import find_packages, setup

SOURCE_ROOTS = ("exporter", "runtime", "benchmarks")

setup(
    # No search finds configs/, which is installed as the package pcexport.recipes (package_dir in setup.cfg).
    packages=[*(name for root in SOURCE_ROOTS for name in find_packages(root)), "pcexport.recipes"],
)
