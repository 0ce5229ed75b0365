// A worker thread starts from plain JavaScript: Node.js has to be taught TypeScript first, in every thread anew.
import { register } from 'tsx/esm/api';

register();
await import('./worker.ts');
