# Makes the virtual environment. Sourced by quickstart.sh and test.sh, which set called_from (the caller's folder) and
# then change to the repository root.
# shellcheck shell=bash disable=SC2154

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# absolute PATH: PATH, given relative to the caller's folder, as seen from here.
absolute() {
    if [[ $1 == /* || $called_from == "$PWD" ]]; then
        printf '%s\n' "$1"
    else
        printf '%s\n' "$called_from/$1"
    fi
}

# venv_folder: the virtual environment's folder, $VENV or .venv.
venv_folder() {
    if [[ -n "${VENV:-}" ]]; then
        absolute "$VENV"
    else
        printf '.venv\n'
    fi
}

# is_supported PY: whether PY runs and is Python 3.11, 3.12 or 3.13.
is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

# find_python [PY]: print PY, or the first of the usual names that is supported.
find_python() {
    local name
    if [[ -n "${1:-}" ]]; then
        command -v "$1" >/dev/null || fail "$1: no such program; give a Python 3.11 to 3.13 with --python"
        is_supported "$1" || fail "$1 is $("$1" --version 2>&1); Python 3.11 to 3.13 is needed. Give one with --python"
        command -v "$1"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && is_supported "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found (python3 is $(python3 --version 2>&1 || true)); install one, or name it with --python"
}

# make_venv DIR REQUIREMENTS WHAT [PY]: bring DIR up to date with REQUIREMENTS and `pip install -e WHAT`, if it is not.
# A stamp in DIR holds the checksum of what was installed, so that a second call does nothing.
make_venv() {
    local dir=$1 requirements=$2 what=$3 python stamp wanted
    if [[ -x "$dir/bin/python" ]] && is_supported "$dir/bin/python"; then
        python="$dir/bin/python"
    else
        python=$(find_python "${4:-}")
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "$python has no venv module; on Debian or Ubuntu: apt install python3-venv"
        say "Virtual environment $dir ($("$python" --version))"
        "$python" -m venv --clear "$dir"
        python="$dir/bin/python"
    fi
    stamp="$dir/.installed-$requirements"
    wanted=$(cat requirements*.txt setup.py pyproject.toml | cksum; pwd)
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    say "Installing $requirements (a few minutes)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" -e "$what"
    printf '%s\n' "$wanted" >"$stamp"
}
