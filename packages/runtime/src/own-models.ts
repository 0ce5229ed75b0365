/**
 * The models of test/runtime that the runtime itself runs, as `test/runtime/make_models.py` writes them. The `words-`
 * models move data of any type as 32-bit words, where memory cannot be reached but by programs.
 */
const MODELS = {
  /** c = a · b for float32 matrices of any size: run once to learn whether a device works at all. */
  matmul:
    'CAoSADpgChEKAWEKAWISAWMiBk1hdE11bBIGbWF0bXVsWhUKAWESEAoOCAESCgoDEgFNCgMSAUtaFQoBYhIQCg4IARIKCgMSAUsKAxIBTmIVCgFjEhAKDggBEgoKAxIBTQoDEgFOQgQKABAX',
  /** y = x. */
  'words-copy':
    'CAoSADpCChAKAXgSAXkiCElkZW50aXR5Egp3b3Jkcy1jb3B5WhAKAXgSCwoJCAYSBQoDEgFOYhAKAXkSCwoJCAYSBQoDEgFOQgQKABAX',
  /** y [count] = word. */
  'words-fill':
    'CAoSADphChgKBHdvcmQKBWNvdW50EgF5IgZFeHBhbmQSCndvcmRzLWZpbGxaEgoEd29yZBIKCggIBhIECgIIAVoTCgVjb3VudBIKCggIBxIECgIIAWIQCgF5EgsKCQgGEgUKAxIBTkIECgAQFw==',
  /** y [K, W] = the rows of x [R, W] that `rows` names. */
  'words-gather':
    'CAoSADpnChQKAXgKBHJvd3MSAXkiBkdhdGhlchIMd29yZHMtZ2F0aGVyWhUKAXgSEAoOCAYSCgoDEgFSCgMSAVdaEwoEcm93cxILCgkIBxIFCgMSAUtiFQoBeRIQCg4IBhIKCgMSAUsKAxIBV0IECgAQFw==',
  /** y = a, b. */
  'words-join-2':
    'CAoSADpkCh4KAWEKAWISAXkiBkNvbmNhdCoLCgRheGlzGACgAQISDHdvcmRzLWpvaW4tMloQCgFhEgsKCQgGEgUKAxIBQVoQCgFiEgsKCQgGEgUKAxIBQmIQCgF5EgsKCQgGEgUKAxIBTkIECgAQFw==',
  /** y = a, b, c. */
  'words-join-3':
    'CAoSADp5CiEKAWEKAWIKAWMSAXkiBkNvbmNhdCoLCgRheGlzGACgAQISDHdvcmRzLWpvaW4tM1oQCgFhEgsKCQgGEgUKAxIBQVoQCgFiEgsKCQgGEgUKAxIBQloQCgFjEgsKCQgGEgUKAxIBQ2IQCgF5EgsKCQgGEgUKAxIBTkIECgAQFw==',
} as const;

export type OwnModelName = keyof typeof MODELS;

export const OWN_MODEL_NAMES = Object.keys(MODELS) as readonly OwnModelName[];

export function readOwnModel(name: OwnModelName): Uint8Array {
  return Uint8Array.from(Buffer.from(MODELS[name], 'base64'));
}
