# SPDX-License-Identifier: Apache-2.0
"""Fixtures read from the registries, so that a new name is tested without touching a test."""

import inspect
import os
import zlib

import numpy as np
import pytest
from installed_package import find_cmake_dir
from support import core_build, oracle_build

import treespec


def pytest_configure():
    """Beside other workers a process has one thread, and so have its children."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported


def pytest_generate_tests(metafunc):
    if "builder_name" in metafunc.fixturenames:
        metafunc.parametrize("builder_name", list(treespec.builder_names()))
    if "verifier_name" in metafunc.fixturenames:
        metafunc.parametrize("verifier_name", list(treespec.verifier_names()))


def pytest_collection_modifyitems(items):
    """Combinations a test says nothing about (`support.only`) do not exist; they are not skips."""

    def admitted(item, rule):
        return rule(*[item.callspec.params[name] for name in inspect.signature(rule).parameters])

    items[:] = [
        item
        for item in items
        if all(admitted(item, mark.args[0]) for mark in item.iter_markers("only"))
    ]


@pytest.fixture(params=["core", "oracle"])
def build(request):
    """``build(name, source, node_budget=..., **options)``: what holds for one holds for both."""
    return {"core": core_build, "oracle": oracle_build}[request.param]


@pytest.fixture
def rng(request):
    """A generator of the test's own name; TREESPEC_TEST_SEED shifts all of them."""
    shift = int(os.environ.get("TREESPEC_TEST_SEED", "0"))
    seed = zlib.crc32(request.node.nodeid.encode()) + shift
    request.node.user_properties.append(("seed", seed))
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True, scope="session")
def no_profiles(tmp_path_factory):
    """Profiles that were kept on this machine must not decide what a test sees."""
    os.environ["TREESPEC_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cmake_dir(tmp_path_factory):
    """The folder of the CMake package of treespec."""
    return find_cmake_dir(tmp_path_factory)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    for name, value in item.user_properties:
        if name == "seed" and report.failed:
            report.sections.append(("seed of rng", str(value)))
