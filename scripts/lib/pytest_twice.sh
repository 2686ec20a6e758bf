# Tests that depend on the machine's load. Sourced by test.sh.
# shellcheck shell=bash

# pytest_twice PYTHON TESTS...: run the tests, and what failed once more. The last line says which passed only then:
# they hide a race or a time that is too short.
pytest_twice() {
    local python=$1 log failed code=0
    shift
    log=$(mktemp)
    "$python" -m pytest -rfE "$@" | tee "$log" || code=$?
    failed=$(sed -nE 's/^(FAILED|ERROR) ([^ ]+).*/\2/p' "$log" | sort -u | paste -sd ' ')
    rm -f "$log"
    ((code)) || return 0
    "$python" -m pytest "$@" --last-failed || return
    printf 'PASSED ONLY THE SECOND TIME: %s\n' "${failed:-unknown, exit code $code at first}"
}
