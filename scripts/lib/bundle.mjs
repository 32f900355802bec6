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

const scripts = ['cli.js', ...SCRIPTS];
const bundle = await rolldown({
  input: Object.fromEntries(scripts.map((script) => [script, path.join(ROOT, 'build', script)])),
  platform: 'node',
  external: [/^node:/, ...Object.keys({ ...dependencies, ...optionalDependencies })],
});
const { output } = await bundle.write({
  dir: DIST,
  entryFileNames: '[name]',
  chunkFileNames: 'shared/[name].js',
  // The module that knows where the others are stays one directory deep, as it is in the source.
  codeSplitting: { groups: [{ name: 'program-files', test: /\/host\/program-files\.js$/ }] },
  cleanDir: true,
});
fs.chmodSync(path.join(DIST, 'cli.js'), 0o755);
const packages = packagesOf(output.flatMap((file) => file.moduleIds ?? []));
fs.writeFileSync(path.join(DIST, 'LICENCES'), packages.map(licenceOf).join('\n'));
