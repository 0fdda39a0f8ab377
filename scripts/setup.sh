#!/usr/bin/env bash
# Make a virtual environment ready: scripts/setup.sh ENVIRONMENT EXTRAS
#
# Creates it where it is missing, installs torch where none is importable, then builds and installs the package
# (editable) with the given extras, all at the versions of constraints.txt.
set -euo pipefail
environment=$1 extras=$2
python=${PYTHON:-python3}
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT

say() { printf '==> %s\n' "$*"; }
pip_install() { "$environment/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

if [ ! -x "$environment/bin/python" ]; then
  say "creating $environment with $("$python" --version)"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Gossamer needs Python 3.10 or newer; name one with PYTHON=")'
  "$python" -m venv "$environment" ||
    { rm -rf "$environment"; say "python could not create it (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
fi
command -v c++ > /dev/null || { say "a C++20 compiler is needed (on Debian and Ubuntu: apt install g++)"; exit 1; }

pip_install "setuptools>=77" wheel ninja numpy -c constraints.txt
if ! "$environment/bin/python" -c 'import torch' 2> /dev/null; then
  say "installing torch (once; a CUDA build of torch is several gigabytes)"
  pip_install torch -c constraints.txt
fi

# A torch that was there before stays as it is.
torch=$("$environment/bin/python" -c 'import torch; print(torch.__version__)')
sed "s/^torch==.*/torch==$torch/" constraints.txt > "$constraints"

say "building Gossamer against torch $torch and installing [$extras]"
pip_install --no-build-isolation -c "$constraints" -e ".[$extras]"
"$environment/bin/python" -c '
import gossamer
cuda = "with" if gossamer.cuda_built() else "without"
print(f"==> ready: gossamer {gossamer.__version__}, {gossamer.instruction_set()} kernels, {cuda} CUDA kernels")'
