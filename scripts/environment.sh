# Sourced by the scripts beside it: makes or reuses the project's own environment and puts it on PATH.
#
#   GSMAE_VENV      folder of the environment (default: .venv in the checkout)
#   PYTHON          interpreter to make it with (default: python3)
#   GSMAE_PIP_ARGS  more arguments for pip, e.g. an index with CPU builds of torch
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${GSMAE_VENV:-$root/.venv}

# what decides whether the environment is up to date; kernels are compiled at install, so their sources count
stamp=$(cat "$root"/pyproject.toml "$root"/setup.py "$root"/constraints.txt "$root"/csrc/* | cksum)

if [[ ! -x $venv/bin/python ]]; then
  if [[ -n $(ls -A "$venv" 2>/dev/null) && ! -e $venv/pyvenv.cfg ]]; then
    echo "error: $venv is a folder, but not an environment; choose another GSMAE_VENV" >&2
    exit 1
  fi
  echo "Making an environment in $venv" >&2
  if ! "${PYTHON:-python3}" -m venv "$venv"; then
    echo "error: ${PYTHON:-python3} cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
fi
if [[ $(cat "$venv/gsmae.stamp" 2>/dev/null) != "$stamp" ]]; then
  echo "Installing into $venv (torch first: a few minutes on a fresh machine)" >&2
  rm -f "$venv/gsmae.stamp"
  # shellcheck disable=SC2086  # several arguments in one variable, on purpose
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${GSMAE_PIP_ARGS:-} \
    -c "$root/constraints.txt" -e "$root[test]"
  printf '%s' "$stamp" >"$venv/gsmae.stamp"
fi
PATH="$venv/bin:$PATH"
export PATH
