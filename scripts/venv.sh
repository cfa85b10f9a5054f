#!/bin/sh
# Makes .venv with a Python that Trilithon runs on: the one that PYTHON names, the first on PATH, or one that uv fetches.
set -eu
cd "$(dirname "$0")/.."
is_newer='import sys; sys.exit(sys.version_info < (3, 11))'
uv=$(command -v uv || { [ -x "$HOME/.local/bin/uv" ] && echo "$HOME/.local/bin/uv"; } || true)
python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if "$candidate" -c "$is_newer" 2> /dev/null; then python=$candidate; break; fi
done

# A half-made one would be taken for whole the next time.
trap 'rm -rf .venv' EXIT
if [ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2> /dev/null; then
  "$python" -m venv .venv
elif [ -n "$uv" ]; then
  "$uv" venv --quiet --seed --python "${PYTHON:->=3.11}" .venv
elif [ -n "$python" ]; then
  echo "error: $python lacks venv; run: sudo apt install python3-venv (its name on Debian and Ubuntu), then make again" >&2
  exit 2
else
  version=$("${PYTHON:-python3}" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null || echo missing)
  echo "error: Python 3.11 or newer is needed, ${PYTHON:-python3} is $version; run this, then make again:" >&2
  echo "  curl -LsSf https://astral.sh/uv/install.sh | sh   # uv, which brings a Python of its own, without root" >&2
  for package in python3.13 python3.12 python3.11; do
    if apt-cache policy "$package" 2> /dev/null | grep -q 'Candidate: [0-9]'; then
      echo "or: sudo apt install $package $package-venv" >&2
      break
    fi
  done
  exit 2
fi
trap - EXIT
