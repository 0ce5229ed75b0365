/**
 * c = a · b for float32 matrices of any size: `test/runtime/matmul.onnx`, which `test/runtime/make_models.py` writes.
 * It is run once to learn whether a device works at all.
 */
export const PROBE_MODEL = Uint8Array.from(
  Buffer.from(
    'CAoSADpgChEKAWEKAWISAWMiBk1hdE11bBIGbWF0bXVsWhUKAWESEAoOCAESCgoDEgFNCgMSAUtaFQoBYhIQCg4IARIKCgMSAUsKAxIBTmIVCgFjEhAKDggBEgoKAxIBTQoDEgFOQgQKABAX',
    'base64',
  ),
);
