"""Package map and the native extensions. Everything declarative stands in pyproject.toml."""

import glob
import os
import re
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

try:
    import torch
    import torch.utils.cpp_extension as cpp_extension
except ImportError:
    sys.exit(
        "gossamer builds against the torch it will run with: install torch (2.11 or newer) first, "
        "then run pip install --no-build-isolation ."
    )

OLDEST_TORCH = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11
PACKAGES = {
    "gossamer": "src/gossamer",
    "gossamer.sparse_nn": "sparse_nn",
    "gossamer.graph": "graph",
    "gossamer.distributed": "distributed",
    "gossamer.benchmarks": "benchmarks",
}
# Of the benchmarks, those of single operators are installed, with what they import.
INSTALLED_BENCHMARKS = {
    "__init__", "cost", "environment", "graphs", "harness", "sweep", "sweep_graph", "sweep_sparse_nn", "timing",
    "tokens",
}  # fmt: skip
HEADERS = sorted(glob.glob("csrc/*/*.h") + glob.glob("csrc/*/*.cuh"))
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi", OLDEST_TORCH]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-g0", OLDEST_TORCH]
LINK_FLAGS: list[str] = []
BUILD_FOLDER = "build"
if sanitizer := os.environ.get("GOSSAMER_SANITIZE"):  # address or undefined, for the tests of the CPU kernels
    CXX_FLAGS += ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    LINK_FLAGS += [f"-fsanitize={sanitizer}"]
    BUILD_FOLDER = f"build/{sanitizer}"


class BuildOperators(cpp_extension.BuildExtension):
    """Keeps the object files (an editable build would not), so that ninja recompiles only what changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"{BUILD_FOLDER}/objects"


class BuildModules(build_py):
    """Leaves out the scripts that measure against a checkout and write into it."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if package != "gossamer.benchmarks" or m[1] in INSTALLED_BENCHMARKS]


def find_cuda() -> str | None:
    """Path of the CUDA toolkit to build with, or None; GOSSAMER_CUDA is auto (default), 0 or 1."""
    wanted = os.environ.get("GOSSAMER_CUDA", "auto").lower()
    if wanted in ("0", "off", "no"):
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home and (nvcc := shutil.which("nvcc")):  # nvcc on PATH may be a wrapper script: ask it
        dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        match = re.search(r"#\$ TOP=(\S+)", dry_run.stderr)
        home = os.path.realpath(match.group(1)) if match else None
    if home and os.path.exists(os.path.join(home, "bin", "nvcc")):
        return home
    if wanted in ("1", "on", "yes"):
        sys.exit("GOSSAMER_CUDA=1 needs the CUDA toolkit: no nvcc found on PATH or under CUDA_HOME")
    return None


def cpu_extension():
    sources = ["csrc/operators.cpp", *sorted(glob.glob("csrc/*/*_cpu.cpp"))]
    return cpp_extension.CppExtension(
        "gossamer._C", sources, include_dirs=[os.path.abspath("csrc")],
        depends=HEADERS, extra_compile_args={"cxx": CXX_FLAGS}, extra_link_args=LINK_FLAGS, py_limited_api=True,
    )  # fmt: skip


def cuda_extension(home: str):
    if cpp_extension.CUDA_HOME is None:  # a CPU build of torch never looks for a toolkit
        cpp_extension.CUDA_HOME = home
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    # torch must be named at link time: only libtorch.so brings libtorch_cuda.so in, where there is one.
    link_args = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    return cpp_extension.CppExtension(  # not CUDAExtension: that one refuses a CPU build of torch
        "gossamer._C_cuda", sorted(glob.glob("csrc/*/*_cuda.cu")),
        include_dirs=[os.path.abspath("csrc"), os.path.join(home, "include")],
        library_dirs=[os.path.join(home, "lib64")],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        depends=HEADERS, extra_link_args=link_args, py_limited_api=True,
    )  # fmt: skip


def host_extension():
    """Host objects, with pybind11 (its headers come with torch): of one Python version, unlike the operators."""
    headers = os.path.join(os.path.dirname(torch.__file__), "include")
    return Extension(
        "gossamer._host", sorted(glob.glob("csrc/host/*_module.cpp")), language="c++", depends=HEADERS,
        include_dirs=[os.path.abspath("csrc"), headers],
        extra_compile_args={"cxx": [flag for flag in CXX_FLAGS if flag != OLDEST_TORCH]}, extra_link_args=LINK_FLAGS,
    )  # fmt: skip


extensions = [cpu_extension()]
if sys.platform == "linux":
    extensions.append(host_extension())
if cuda_home := find_cuda():
    extensions.append(cuda_extension(cuda_home))
print(f"gossamer: building {', '.join(e.name for e in extensions)}" + (f" with {cuda_home}" if cuda_home else ""))

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={"gossamer": ["py.typed", "_C.pyi", "_host.pyi"]},
    ext_modules=extensions,
    cmdclass={"build_ext": BuildOperators, "build_py": BuildModules},
    options={"build": {"build_base": BUILD_FOLDER}},
    zip_safe=False,
)
