#!/bin/sh
# Installs what webgpu.test.ts needs where there is no GPU: SwiftShader, a Vulkan driver that computes on the CPU, and
# the Vulkan loader. Both lie in Debian's chromium-common; no browser is needed.
set -eu
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-common
