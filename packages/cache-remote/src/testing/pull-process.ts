/**
 * Pulls in a process of its own, to be killed: REMOTE FOLDER POLICY-AS-JSON. Prints the bytes it has after each chunk.
 */
import { pullCache } from '../index.ts';

const [remote, folder, policy] = process.argv.slice(2);
const result = await pullCache(remote!, folder!, {
  policy: JSON.parse(policy!),
  onProgress: ({ bytes }) => console.error(`bytes ${bytes}`),
});
console.log(JSON.stringify(result));
