import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** glibc's flag for dlopen: the library stays, even if Node.js closes it because it is no addon. */
const RTLD_NODELETE = 0x1000;

const DRIVER = '/usr/lib/chromium/vk_swiftshader_icd.json';

/**
 * Makes WebGPU compute on SwiftShader in this process, a Vulkan driver for the CPU; to be called before the first
 * engine. Debian's chromium-common has it together with a Vulkan loader. STILLHOUSE_INSTALL_WEBGPU=1 allows to install
 * it.
 * @returns why there is none; false where there is
 */
export function chooseSoftwareAdapter(): string | false {
  if (process.platform !== 'linux') return 'the software adapter comes from a Debian package';
  if (!existsSync(DRIVER) && process.env.STILLHOUSE_INSTALL_WEBGPU === '1') {
    const script = fileURLToPath(new URL('../../../test/webgpu/install.sh', import.meta.url));
    execFileSync('sh', [script], { stdio: ['ignore', 'ignore', 'inherit'] });
  }
  if (!existsSync(DRIVER)) {
    return `no ${DRIVER} (Debian's chromium-common); set STILLHOUSE_INSTALL_WEBGPU=1 to have it installed`;
  }
  process.env.VK_ICD_FILENAMES = DRIVER;
  process.env.VK_DRIVER_FILES = DRIVER;
  try {
    // Dawn asks for libvulkan.so.1 by that name, and the dynamic linker gives it the one that is loaded already.
    const loader = join(dirname(DRIVER), 'libvulkan.so.1');
    process.dlopen({ exports: {} }, loader, constants.dlopen.RTLD_LAZY | RTLD_NODELETE);
  } catch (error) {
    if (!/did not self-register/.test(String(error))) throw error;
  }
  return false;
}
