/** Private: the check of gradients that tests of several packages share. Nothing outside of tests imports it. */
export { type GradientCase, gradientError } from './gradient-error.ts';
