#!/bin/sh
# Run all tests, the slow ones too, on every interpreter found among those we support, side by side.
# The interpreters are looked for by name, and where pyenv puts them.
set -u
# In seconds; a test that hangs is named much earlier, see setup.cfg.
limit=$(command -v timeout >/dev/null && echo "timeout --kill-after=60 2400")
found= failed=
for version in 3.11 3.12 3.13; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        "$python" -c 'import ensurepip' 2>/dev/null || continue
        make VENV=".venv-$version" PYTHON="$python" ".venv-$version/.ready" || exit 1
        # Most tests wait for something most of the time: hence two processes for each.
        $limit ".venv-$version/bin/python" -m pytest -p no:cacheprovider -m "slow or not slow" \
            -n 2 --durations=20 "$@" >".venv-$version/tests.log" 2>&1 &
        found="$found $version=$!"
        break
    done
done
[ -n "$found" ] || { echo "no Python 3.11, 3.12 or 3.13 found" >&2; exit 1; }
for one in $found; do
    wait "${one#*=}" || failed="$failed ${one%=*}"
    echo "== Python ${one%=*}"
    cat ".venv-${one%=*}/tests.log"
done
[ -z "$failed" ] || { echo "tests failed on Python$failed" >&2; exit 1; }
echo "tests passed on every Python"
