#!/bin/sh
# What no wheel carries: a Vulkan driver for WebGPU (Mesa's lavapipe runs on the CPU), a browser, a database.
set -eu
wanted="chromium libvulkan1 mesa-vulkan-drivers postgresql"

if ! command -v apt-get >/dev/null; then
    echo "system packages: no apt-get here; install by hand: $wanted" >&2
    exit 1
fi
missing=""
for package in $wanted; do
    case $(dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null) in
        "install ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
if [ -z "$missing" ]; then exit 0; fi

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null && sudo --non-interactive true 2>/dev/null; then
    as_root="sudo"
else
    echo "system packages: missing, and installing needs root:$missing; run: apt-get install$missing" >&2
    exit 1
fi
$as_root apt-get update --quiet=2
# shellcheck disable=SC2086  # words on purpose
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends $missing
