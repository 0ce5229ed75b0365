export { type BundledFile, type BundleRequest, bundleSources } from './bundle-sources.ts';
export { writeBundledFiles } from './write-bundled-files.ts';
