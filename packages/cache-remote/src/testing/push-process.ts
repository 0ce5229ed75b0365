/** Pushes in a process of its own, to be killed: FOLDER REMOTE POLICY-AS-JSON. */
import { pushCache } from '../index.ts';

const [folder, remote, policy] = process.argv.slice(2);
console.log(JSON.stringify(await pushCache(folder!, remote!, { policy: JSON.parse(policy!) })));
