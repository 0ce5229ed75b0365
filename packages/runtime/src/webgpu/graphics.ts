import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Whether a graphics processor can be reached by WebGPU, and the words for why (not). */
export interface GraphicsFinding {
  readonly isPresent: boolean;
  readonly reason: string;
}

export interface GraphicsSurroundings {
  readonly platform: NodeJS.Platform;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** What the paths of devices and drivers are below. */
  readonly root: string;
}

const HERE: GraphicsSurroundings = { platform: process.platform, environment: process.env, root: '/' };

/** Vulkan drivers that compute on the CPU: SwiftShader and Mesa's lavapipe. */
const SOFTWARE_DRIVER = /swiftshader|lvp|lavapipe|llvmpipe/i;

/** Where the Vulkan loader looks for drivers, after the variables that name them. */
const DRIVER_FOLDERS = [
  '/usr/local/etc/vulkan/icd.d',
  '/usr/local/share/vulkan/icd.d',
  '/etc/vulkan/icd.d',
  '/usr/share/vulkan/icd.d',
];

/**
 * Looks for a graphics processor that WebGPU would use. ONNX Runtime's binding does not tell which adapter it took, and
 * takes one that computes on the CPU where there is no other, so this looks where the system lists devices and drivers.
 */
export function findGraphics({ platform, environment, root }: GraphicsSurroundings = HERE): GraphicsFinding {
  if (platform === 'darwin') return { isPresent: true, reason: 'every Mac has a graphics processor for Metal' };
  if (platform === 'win32') return { isPresent: true, reason: 'Windows has Direct3D 12' };
  if (platform !== 'linux') return { isPresent: false, reason: `WebGPU is not there on ${platform}` };
  const device = findDevice(root);
  if (device === undefined) {
    return { isPresent: false, reason: 'no graphics processor (no /dev/dri/renderD*, /dev/nvidia* or /dev/dxg)' };
  }
  const driver = listDrivers(root, environment).find((library) => !SOFTWARE_DRIVER.test(library));
  return driver === undefined
    ? { isPresent: false, reason: `there is ${device}, but no Vulkan driver for it` }
    : { isPresent: true, reason: `there is ${device} with the Vulkan driver ${driver}` };
}

function findDevice(root: string): string | undefined {
  const inFolder = (folder: string, pattern: RegExp) =>
    listFolder(join(root, folder))
      .filter((name) => pattern.test(name))
      .map((name) => `/${folder}/${name}`);
  return [...inFolder('dev', /^nvidia\d+$/), ...inFolder('dev/dri', /^renderD\d+$/), ...inFolder('dev', /^dxg$/)][0];
}

/** The libraries that driver manifests name. */
function listDrivers(root: string, environment: GraphicsSurroundings['environment']): readonly string[] {
  const named = environment.VK_DRIVER_FILES || environment.VK_ICD_FILENAMES;
  const split = (paths: string | undefined) => (paths ?? '').split(':').filter((path) => path !== '');
  const manifests = named
    ? split(named)
    : DRIVER_FOLDERS.flatMap((folder) =>
        listFolder(join(root, folder))
          .filter((name) => name.endsWith('.json'))
          .map((name) => join(root, folder, name)),
      );
  return [...split(environment.VK_ADD_DRIVER_FILES), ...manifests].flatMap((path) => {
    try {
      const library = JSON.parse(readFileSync(path, 'utf8'))?.ICD?.library_path;
      return typeof library === 'string' ? [library] : [];
    } catch {
      return []; // The loader passes over manifests that it cannot read, too.
    }
  });
}

function listFolder(path: string): readonly string[] {
  return existsSync(path) ? readdirSync(path).sort() : [];
}
