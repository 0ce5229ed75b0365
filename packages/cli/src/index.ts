/** The `stillhouse` command. `bin/stillhouse.js` runs it; what it does is in the packages below. */
export { main } from './main.ts';
