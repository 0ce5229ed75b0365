import type { GraphBuilder } from '@stillhouse/onnx-graph';
import type { Engine, Program } from '@stillhouse/runtime';

/** Programs, each compiled once. */
export interface QualityPrograms {
  /** @param key equal graphs have equal ones; left out: the graph is like no other */
  compile(graph: GraphBuilder, key?: string): Promise<Program>;
  /** Releases them all. */
  release(): Promise<void>;
}

export function openPrograms(engine: Engine): QualityPrograms {
  const all = new Map<string, Promise<Program>>();
  return {
    compile: (graph, key = `graph ${all.size}`) => {
      const known = all.get(key);
      if (known !== undefined) return known;
      const program = engine.compile(graph);
      all.set(key, program);
      return program;
    },
    release: async () => {
      for (const program of all.values()) await (await program).release();
    },
  };
}
