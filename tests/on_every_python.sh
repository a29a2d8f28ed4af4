#!/bin/sh
# Run all tests, the slow ones too, on every interpreter found among those we support, side by side,
# and those of the adapters beside the others: most of them wait for something most of the time.
# The interpreters are looked for by name, and where pyenv puts them.
set -u
found= failed=
for version in 3.11 3.12 3.13; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        "$python" -c 'import ensurepip' 2>/dev/null || continue
        make VENV=".venv-$version" PYTHON="$python" ".venv-$version/.ready" || exit 1
        for part in tests/adapters tests; do
            [ "$part" = tests ] && rest=--ignore=tests/adapters || rest=
            log=".venv-$version/$(basename "$part").log"
            # shellcheck disable=SC2086 # nothing, or one word
            ".venv-$version/bin/python" -m pytest -p no:cacheprovider -m "slow or not slow" \
                "$part" $rest "$@" >"$log" 2>&1 &
            found="$found $log=$!"
        done
        break
    done
done
[ -n "$found" ] || { echo "no Python 3.11, 3.12 or 3.13 found" >&2; exit 1; }
for one in $found; do
    log=${one%=*}
    wait "${one#*=}" || failed="$failed $log"
    echo "== $log"
    cat "$log"
done
[ -z "$failed" ] || { echo "tests failed:$failed" >&2; exit 1; }
echo "tests passed on every Python"
