import * as fs from 'node:fs';
import * as path from 'node:path';

/** A source file: its path relative to src/, its text without comments, and what it imports. */
export interface SourceFile {
  readonly file: string;
  readonly code: string;
  readonly lines: number;
  /** Paths relative to src/, of static, type-only and dynamic imports and of re-exports. */
  readonly imports: readonly string[];
  readonly packages: readonly string[];
}

export type SourceGraph = ReadonlyMap<string, SourceFile>;

const STRING_OR_COMMENT =
  /\/\*[\s\S]*?\*\/|\/\/[^\n]*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`/g;
const STATIC_IMPORT = /^(?:import|export)\s(?:[\w$*{},\s]*?\sfrom\s+)?\s*['"]([^'"]+)['"]/gm;
const DYNAMIC_IMPORT = /\bimport\(\s*['"]([^'"]+)['"]\s*\)/g;

export function withoutComments(text: string): string {
  return text.replace(STRING_OR_COMMENT, (match) => (match.startsWith('/') ? ' ' : match));
}

/** What follows `from` or stands in `import(…)`, in code without comments. */
export function importSpecifiers(code: string): string[] {
  return [STATIC_IMPORT, DYNAMIC_IMPORT].flatMap((pattern) =>
    [...code.matchAll(pattern)].map(([, name]) => name!),
  );
}

export function sourceFile(file: string, text: string): SourceFile {
  const code = withoutComments(text);
  const specifiers = importSpecifiers(code);
  const imports = specifiers
    .filter((specifier) => specifier.startsWith('.'))
    .map((specifier) => path.join(path.dirname(file), specifier).replace(/\.js$/, '.ts'));
  const packages = specifiers.filter((specifier) => !specifier.startsWith('.'));
  return { file, code, lines: text.split('\n').length - 1, imports, packages };
}

/** All TypeScript files below `directory`. */
export function readSources(directory: string): SourceGraph {
  const files = fs
    .readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'));
  return new Map(
    files.sort().map((file) => [file, sourceFile(file, fs.readFileSync(path.join(directory, file), 'utf8'))]),
  );
}

/** The files that `start` imports, they import, and so on; `start` is among them. */
export function reachable(graph: SourceGraph, start: string): Set<string> {
  const reached = new Set<string>();
  const waiting = [start];
  for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
    if (reached.has(file)) continue;
    reached.add(file);
    waiting.push(...(graph.get(file)?.imports ?? []));
  }
  return reached;
}

/** Edges between the nodes that `nodeOf` maps files to; a node has none to itself. */
export function collapse(graph: SourceGraph, nodeOf: (file: string) => string): Map<string, Set<string>> {
  const edges = new Map<string, Set<string>>();
  for (const { file, imports } of graph.values()) {
    const targets = edges.get(nodeOf(file)) ?? new Set<string>();
    edges.set(nodeOf(file), targets);
    for (const target of imports.map(nodeOf)) if (target !== nodeOf(file)) targets.add(target);
  }
  return edges;
}

/** The first cycle found, as the nodes along it; undefined when there is none. */
export function findCycle(edges: ReadonlyMap<string, ReadonlySet<string>>): string[] | undefined {
  const finished = new Set<string>();
  const visit = (node: string, trail: readonly string[]): string[] | undefined => {
    if (trail.includes(node)) return [...trail.slice(trail.indexOf(node)), node];
    if (finished.has(node)) return undefined;
    for (const next of edges.get(node) ?? []) {
      const cycle = visit(next, [...trail, node]);
      if (cycle !== undefined) return cycle;
    }
    finished.add(node);
    return undefined;
  };
  for (const node of edges.keys()) {
    const cycle = visit(node, []);
    if (cycle !== undefined) return cycle;
  }
  return undefined;
}
