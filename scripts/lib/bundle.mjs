// bundle.mjs: makes dist/ of what was compiled into build/: the same scripts, with all that they need, npm packages
// included, in fewer files. Node is started often, and loads these in half the time.
// What the package depends on, because it has compiled code, stays outside.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { rolldown } from 'rolldown';
import { SCRIPTS } from '../../build/host/program-files.js';
import { licenceOf, readPackage } from './package/licence.mjs';

const ROOT = path.resolve(import.meta.dirname, '../..');
const DIST = path.join(ROOT, 'dist');
const { dependencies, optionalDependencies } = readPackage(ROOT);

/** Directories of the npm packages that modules come from. */
function packagesOf(modules) {
  const directories = modules.map((module) => /^.*\/node_modules\/(@[^/]+\/)?[^/]+/.exec(module)?.[0]);
  return [...new Set(directories)].filter((directory) => directory !== undefined).sort();
}

/**
 * Bundles scripts; what they share goes into a directory of its own, and what at least `minShareCount` of them (or of the
 * verbs, each of which is loaded by itself) need into one file: fewer are loaded sooner. Returns all modules.
 */
async function write({ scripts, directory, minShareCount }) {
  const bundle = await rolldown({
    input: Object.fromEntries(scripts.map((script) => [script, path.join(ROOT, 'build', script)])),
    platform: 'node',
    // One of the trackers is also needed by another.
    checks: { ineffectiveDynamicImport: false },
    external: [/^node:/, ...Object.keys({ ...dependencies, ...optionalDependencies })],
  });
  const { output } = await bundle.write({
    dir: DIST,
    entryFileNames: '[name]',
    chunkFileNames: `${directory}/[name].js`,
    codeSplitting: {
      groups: [
        // The module that knows where the others are stays one directory deep, as it is in the source.
        { name: 'program-files', test: /\/host\/program-files\.js$/, priority: 1 },
        { name: 'common', minShareCount },
      ],
    },
  });
  return output.flatMap((file) => file.moduleIds ?? []);
}

fs.rmSync(DIST, { recursive: true, force: true });
// Apart from each other: threads, of which there are several, do not load what only commands and daemons need.
const modules = [
  ...(await write({ scripts: ['cli.js'], directory: 'commands', minShareCount: 2 })),
  ...(await write({ scripts: SCRIPTS, directory: 'threads', minShareCount: 3 })),
];
fs.chmodSync(path.join(DIST, 'cli.js'), 0o755);
const packages = packagesOf(modules);
fs.writeFileSync(path.join(DIST, 'LICENCES'), packages.map(licenceOf).join('\n'));
