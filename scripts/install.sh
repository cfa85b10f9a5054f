#!/bin/sh
# Puts `trilithon` on PATH for this user, with the demo model and shell completion.
#
#   scripts/install.sh             by uv or pipx where there is one, otherwise as a link to this folder's .venv
#   scripts/install.sh --no-pages  the same as a link, without the web pages and their packages (NiceGUI)
#   scripts/install.sh --link      the link alone, to the .venv that is there
#   scripts/install.sh --remove    takes all of these away again; models and results stay
set -eu
cd "$(dirname "$0")/.."
programs=$HOME/.local/bin
link=$programs/trilithon
how=${1:---any}

is_link_to_a_clone() {
  case $(readlink "$link" 2> /dev/null) in */.venv/bin/trilithon) return 0 ;; *) return 1 ;; esac
}

make_link() {
  if [ -e "$link" ] && ! is_link_to_a_clone; then
    echo "$link is another installation and stays; this folder's program is $PWD/.venv/bin/trilithon" >&2
    return
  fi
  mkdir -p "$programs"
  ln -sf "$PWD/.venv/bin/trilithon" "$link"
  echo "trilithon is installed: $link leads to this folder, which has to stay." >&2
}

by_uv() {
  echo 'Installing Trilithon and the demo model by uv: some 600 MB, a minute or two.' >&2
  UV_TOOL_BIN_DIR=$programs uv tool install --quiet --force --python '>=3.11' --constraints constraints.txt --build-constraints constraints.txt '.[demo]'
  echo "trilithon is installed by uv: $link; this folder is not needed any more." >&2
}

by_pipx() {
  echo 'Installing Trilithon and the demo model by pipx: some 600 MB, a minute or two.' >&2
  PIPX_BIN_DIR=$programs pipx install --quiet --force --python "$python" --pip-args "--constraint '$PWD/constraints.txt'" '.[demo]' > /dev/null
  echo "trilithon is installed by pipx; this folder is not needed any more." >&2
}

# The name of the program that has installed it, or will.
python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    python=$(command -v "$candidate")
    break
  fi
done

case $how in
  --any)
    if command -v uv > /dev/null; then by_uv
    elif command -v pipx > /dev/null && [ -n "$python" ]; then by_pipx
    else make --no-print-directory .venv/demo-installed && make_link; fi ;;
  --no-pages) make --no-print-directory .venv/light-installed && make_link ;;
  --link) make_link ;;
  --remove)
    if is_link_to_a_clone; then rm "$link"
    elif command -v uv > /dev/null && uv tool list 2> /dev/null | grep -q '^trilithon '; then uv tool uninstall --quiet trilithon
    elif command -v pipx > /dev/null && pipx list --short 2> /dev/null | grep -q '^trilithon '; then
      pipx uninstall trilithon > /dev/null
    fi
    rm -f "${XDG_DATA_HOME:-$HOME/.local/share}/bash-completion/completions/trilithon" \
      "${XDG_DATA_HOME:-$HOME/.local/share}/zsh/site-functions/_trilithon" \
      "${XDG_CONFIG_HOME:-$HOME/.config}/fish/completions/trilithon.fish"
    echo "trilithon is not installed any more; its models and results stay in ~/.local/share/trilithon" >&2
    exit ;;
  *) echo "error: $how is not an option; they are --no-pages, --link and --remove" >&2; exit 2 ;;
esac

[ "$how" = --link ] || "$link" pull demo >&2
"$link" completion --install >&2
case :$PATH: in
  *:"$programs":*) ;;
  *) echo "$programs is not on PATH yet; log in again, or run: export PATH=\"\$HOME/.local/bin:\$PATH\"" >&2 ;;
esac
