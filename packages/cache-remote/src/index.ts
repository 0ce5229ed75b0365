/** Teacher caches in other places: folders, web servers, S3 storage, Hugging Face. The layout is in REMOTE.md. */

export { listRemote, type RemoteCache } from './layout/list-remote.ts';
export { hasScheme, parseLocation, type RemoteLocation, type RemotePlace } from './layout/location.ts';
export { type PullOptions, type PullResult, pullCache } from './pull/pull-cache.ts';
export { type PushOptions, type PushResult, pushCache } from './push/push-cache.ts';
export { openCacheAt, openRemoteCache, type RemoteCacheOptions } from './stream/open-remote-cache.ts';
export type { TransferOptions, TransferProgress } from './transfer/transfer-options.ts';
export { DEFAULT_POLICY, type TransferPolicy } from './transfer/transfer-policy.ts';
