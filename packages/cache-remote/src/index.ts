/** Teacher caches in other places: folders, web servers, S3 storage, Hugging Face. The layout is in REMOTE.md. */

export { listRemote, type RemoteCache } from './list-remote.ts';
export { hasScheme, parseLocation, type RemoteLocation, type RemotePlace } from './location.ts';
export { openCacheAt, openRemoteCache, type RemoteCacheOptions } from './open-remote-cache.ts';
export { type PullOptions, type PullResult, pullCache } from './pull-cache.ts';
export { type PushOptions, type PushResult, pushCache } from './push-cache.ts';
export type { TransferOptions, TransferProgress } from './transfer-options.ts';
export { DEFAULT_POLICY, type TransferPolicy } from './transfer-policy.ts';
