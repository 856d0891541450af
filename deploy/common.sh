# What the scripts here share; sourced, never run. Each failure says what to do about it.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'fix:   %s\n' "$2" >&2; exit 1; }

# Ends the script unless as_root can work. Asked before, because what as_root runs has its output in a log.
need_root() {
  [ "$(id -u)" = 0 ] && return 0
  command -v sudo >/dev/null || die "this step needs root and there is no sudo" "run it as root, or install sudo"
  sudo -n env true 2>/dev/null ||
    die "this step needs root and sudo does not let you in without a password" "run \`sudo -v\` and this again, or run it as root"
}

# Runs a command as root: as it is when we are root, else through sudo without asking questions.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Installs the Debian packages among its arguments that are missing. Nothing is started by it.
install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  need_root
  say "installing: ${missing[*]}"
  local log; log=$(mktemp)
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; die "apt-get update failed" "check the network and /etc/apt/sources.list"; }
  # RUNLEVEL=1 keeps packages of servers from starting their service: Shoal starts private ones.
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends \
    "${missing[@]}" >"$log" 2>&1 ||
    { tail -n 15 "$log" >&2; die "apt-get could not install ${missing[*]}" "read the lines above; Debian 12 is what Shoal is built for"; }
  rm -f "$log"
}
