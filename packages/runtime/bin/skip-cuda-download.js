// Runs before the install scripts of the packages that an installed `stillhouse` needs. The one of onnxruntime-node
// downloads the CUDA libraries on Linux, and the whole installation fails where it cannot. It downloads nothing when
// the files are there; empty ones will do. `install.js --onnxruntime-node-install=cuda12` brings real ones.
import { closeSync, existsSync, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const names = ['cuda', 'shared', 'tensorrt'].map((provider) => `libonnxruntime_providers_${provider}.so`);
try {
  const root = dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json'));
  const folder = join(root, 'bin', 'napi-v6', process.platform, process.arch);
  if (process.platform === 'linux' && process.arch === 'x64') {
    for (const path of names.map((name) => join(folder, name))) {
      if (!existsSync(path)) closeSync(openSync(path, 'wx'));
    }
  }
} catch {
  // Without the package, or where its folders are not ours to write to, its own script decides.
}
