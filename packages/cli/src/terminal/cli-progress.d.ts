/** What we use of cli-progress, which comes without types. */
declare module 'cli-progress' {
  export interface BarOptions {
    readonly format?: string;
    readonly stream?: NodeJS.WritableStream;
    readonly barsize?: number;
    readonly fps?: number;
    readonly hideCursor?: boolean;
    readonly linewrap?: boolean;
    readonly gracefulExit?: boolean;
  }
  export interface Preset {
    readonly barCompleteChar: string;
    readonly barIncompleteChar: string;
    readonly format: string;
  }
  export class SingleBar {
    constructor(options: BarOptions, preset?: Preset);
    start(total: number, startValue: number, payload?: Readonly<Record<string, unknown>>): void;
    update(value: number, payload?: Readonly<Record<string, unknown>>): void;
    stop(): void;
  }
  export const Presets: { readonly shades_classic: Preset };
  const cliProgress: { readonly SingleBar: typeof SingleBar; readonly Presets: typeof Presets };
  export default cliProgress;
}
