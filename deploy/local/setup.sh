#!/bin/sh
# Make the virtual environment from uv.lock: find a Python, find or install uv, sync. Run by `make setup` from the checkout.
# Nothing is installed outside the checkout, and no interpreter is ever downloaded.
set -eu

# Trust what the machine trusts: behind a company's proxy uv's own list of certificates is not enough. (Two names: uv renamed it.)
export UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true

fail() {
    echo "error: $1" >&2
    exit 1
}

usable_python() {
    "$1" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

python=""
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null 2>&1 && usable_python "$candidate"; then
        python=$(command -v "$candidate")
        break
    fi
done
[ -n "$python" ] || fail "no Python from 3.11 to 3.13 on PATH; install one (Debian: apt install python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.11"

tools="${CRM_HOME:-.crm}/tools"
if command -v uv >/dev/null 2>&1; then
    uv=uv
elif [ -x "$tools/bin/uv" ]; then
    uv="$tools/bin/uv"
else
    echo "uv is not on PATH; installing it into $tools"
    "$python" -m venv "$tools" || fail "$python cannot make virtual environments; install the module (Debian: apt install python3-venv), or install uv yourself"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.7' ||
        fail "could not install uv into $tools; check the network, or install uv yourself, then make setup again"
    uv="$tools/bin/uv"
fi

# An environment that works keeps its interpreter: to give it another one, uv would remove it first.
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && usable_python .venv/bin/python; then
    python=.venv/bin/python
fi

"$uv" sync --frozen --no-python-downloads --python "$python" ||
    fail "the packages of uv.lock could not be installed; the reason stands above. Check the network, then make setup again"
