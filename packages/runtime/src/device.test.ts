import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { chooseSoftwareAdapter, makeTemporaryFolder, unless } from '@stillhouse/testing';
import { describe, type TestContext, test } from 'vitest';
import { chooseDevice } from './device.ts';
import { openEngine } from './index.ts';
import { checkProduct, tryProducts } from './product-trial.ts';
import { findGraphics } from './webgpu/graphics.ts';

const NVIDIA = '/usr/share/vulkan/icd.d/nvidia_icd.json';

/** A folder that looks like a system with these files; drivers name their library. */
async function makeSystem(t: TestContext, devices: readonly string[], drivers: Readonly<Record<string, string>> = {}) {
  const root = await makeTemporaryFolder(t);
  const write = (path: string, text: string) => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  };
  for (const device of devices) write(device, '');
  for (const [path, library] of Object.entries(drivers))
    write(path, JSON.stringify({ ICD: { library_path: library, api_version: '1.3.0' } }));
  return root;
}

test('a graphics processor counts where there is a device and a Vulkan driver that is not software', async (t) => {
  const mesa = { '/usr/share/vulkan/icd.d/lvp_icd.x86_64.json': 'libvulkan_lvp.so' };
  const radeon = { '/usr/share/vulkan/icd.d/radeon_icd.x86_64.json': 'libvulkan_radeon.so', ...mesa };
  const cases: [devices: string[], drivers: Record<string, string>, isPresent: boolean, reason: RegExp][] = [
    [[], mesa, false, /^no graphics processor \(no \/dev\/dri\/renderD\*/],
    [['/dev/dri/card0', '/dev/nvidiactl'], radeon, false, /^no graphics processor/],
    [['/dev/dri/renderD128'], mesa, false, /there is \/dev\/dri\/renderD128, but no Vulkan driver for it/],
    [['/dev/dri/renderD128'], radeon, true, /\/dev\/dri\/renderD128 with the Vulkan driver libvulkan_radeon\.so/],
    [['/dev/nvidia0'], {}, false, /there is \/dev\/nvidia0, but no Vulkan driver/],
    [['/dev/nvidia0'], { [NVIDIA]: 'libGLX_nvidia.so.0' }, true, /\/dev\/nvidia0 with the Vulkan driver libGLX_nvidia/],
  ];
  for (const [devices, drivers, isPresent, reason] of cases) {
    const root = await makeSystem(t, devices, drivers);
    const found = findGraphics({ platform: 'linux', environment: {}, root });
    assert.equal(found.isPresent, isPresent, found.reason);
    assert.match(found.reason, reason);
  }
});

test('variables that name drivers count as they do for the Vulkan loader', async (t) => {
  const root = await makeSystem(t, ['/dev/nvidia0'], {
    [NVIDIA]: 'libGLX_nvidia.so.0',
    '/software.json': './libvk_swiftshader.so',
  });
  const look = (environment: Record<string, string>) => findGraphics({ platform: 'linux', environment, root });
  const [software, broken] = [join(root, 'software.json'), join(root, 'dev/nvidia0')];
  assert.equal(look({ VK_ICD_FILENAMES: software }).isPresent, false);
  assert.equal(look({ VK_DRIVER_FILES: `${software}:${join(root, NVIDIA)}` }).isPresent, true);
  assert.equal(look({ VK_DRIVER_FILES: broken }).isPresent, false, 'a manifest that cannot be read is passed over');
  assert.equal(look({ VK_ADD_DRIVER_FILES: software }).isPresent, true);
});

test('systems without device files', () => {
  const look = (platform: NodeJS.Platform) => findGraphics({ platform, environment: {}, root: '/nowhere' });
  assert.equal(look('darwin').isPresent, true);
  assert.equal(look('win32').isPresent, true);
  assert.deepEqual(look('freebsd'), { isPresent: false, reason: 'WebGPU is not there on freebsd' });
});

test('auto takes the CPU where nothing else is a candidate, and says so', async () => {
  const engine = await openEngine({ threads: 1 });
  assert.equal(engine.device, 'cpu');
  assert.match(engine.deviceReason, /^cpu, chosen: this work runs on no other device unless it is asked for$/);
  await engine.close();
});

test('auto passes over what is not found, and says what was missing', async () => {
  const missing = { isPresent: false, reason: 'nothing there' };
  const engine = await chooseDevice({ candidates: ['webgpu', 'cuda'] }, 1, () => missing);
  assert.equal(engine.deviceReason, 'cpu, chosen: not webgpu: nothing there; not cuda: nothing there');
  await engine.close();
});

test('auto looks for a candidate on this machine', async () => {
  const engine = await openEngine({ threads: 1, candidates: ['webgpu', 'cuda'] });
  console.log(`here: ${engine.deviceReason}`);
  assert.match(
    engine.deviceReason,
    /^(cpu, chosen: not webgpu: .*; not cuda: .*|webgpu, chosen: .*|cuda, chosen: .*)$/,
  );
  assert.ok(engine.deviceReason.startsWith(engine.device));
  await engine.close();
});

test('a candidate that is found and does not work is passed over with ONNX Runtime’s words', async () => {
  const found = { isPresent: true, reason: 'its library is there' };
  const engine = await chooseDevice({ candidates: ['cuda'] }, 1, () => found).catch((error: unknown) => error);
  const { device, deviceReason } = engine as Awaited<ReturnType<typeof openEngine>>;
  if (device !== 'cuda')
    assert.match(deviceReason, /^cpu, chosen: not cuda: its library is there, but ONNX Runtime cannot/);
  await (engine as Awaited<ReturnType<typeof openEngine>>).close();
});

test('a trial of products times them and knows right from wrong', async () => {
  const engine = await openEngine({ device: 'cpu', threads: 1 });
  const { productMs, isRight } = await tryProducts(engine);
  assert.ok(productMs > 0 && isRight);
  assert.equal((await engine.memory()).allocatedBytes, 0);
  await engine.close();
  assert.equal(checkProduct(new Float32Array(512 * 512)), false);
});

describe('with a WebGPU adapter', unless(chooseSoftwareAdapter()), () => {
  const found = () => ({ isPresent: true, reason: 'there is one' });

  test('auto takes webgpu where a graphics processor is found that multiplies faster than the CPU', async () => {
    const engine = await chooseDevice({ candidates: ['webgpu', 'cuda'] }, 1, found, async () => 5000);
    assert.equal(engine.device, 'webgpu');
    assert.match(
      engine.deviceReason,
      /^webgpu, chosen: there is one; tensors stay in its buffers.*; a product takes \S+ ms there and 5000 ms on the CPU$/,
    );
    await engine.close();
  });

  test('auto passes over a graphics processor that is slower than the CPU', async () => {
    const engine = await chooseDevice({ candidates: ['webgpu'] }, 1, found);
    assert.equal(engine.device, 'cpu', 'the driver is SwiftShader');
    assert.match(
      engine.deviceReason,
      /^cpu, chosen: not webgpu: there is one, but a product takes \S+ ms there and \S+ ms on the CPU$/,
    );
    await engine.close();
  });

  test('auto takes no software adapter, and one that is asked for is called what it is', async () => {
    const chosen = await openEngine({ threads: 1, candidates: ['webgpu'] });
    const asked = await openEngine({ threads: 1, device: 'webgpu' });
    console.log(asked.deviceReason);
    assert.equal(chosen.device, 'cpu', 'the driver is SwiftShader');
    assert.match(
      asked.deviceReason,
      /^webgpu, as asked; tensors stay in its buffers; .*: if it works, then in software/,
    );
    await chosen.close();
    await asked.close();
  });
});
