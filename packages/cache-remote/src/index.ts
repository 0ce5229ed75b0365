/** Teacher caches in other places: folders, web servers, S3 storage, Hugging Face. The layout is in REMOTE.md. */

export { listRemote } from './layout/list-remote.ts';
export { hasScheme, parseLocation } from './layout/location.ts';
export { pullCache } from './pull/pull-cache.ts';
export { pushCache } from './push/push-cache.ts';
export { openCacheAt, openRemoteCache } from './stream/open-remote-cache.ts';
export type { TransferProgress } from './transfer/transfer-options.ts';
