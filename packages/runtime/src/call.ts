import type { Program } from './program.ts';
import type { DeviceTensor } from './tensor.ts';

/** One step of a sequence. An output may be the same tensor as an input; see `Engine.run`. */
export type Call =
  | {
      readonly kind: 'run';
      readonly program: Program;
      readonly inputs: Readonly<Record<string, DeviceTensor>>;
      readonly outputs: Readonly<Record<string, DeviceTensor>>;
    }
  | { readonly kind: 'fill'; readonly tensor: DeviceTensor; readonly value: number }
  | { readonly kind: 'copy'; readonly from: DeviceTensor; readonly to: DeviceTensor };
