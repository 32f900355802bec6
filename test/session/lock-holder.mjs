import { Lock } from '../../build/session/lock.js';

/** Takes a lock, says so, and holds it until stdin ends; with `keep` the lock then stays. */
const [, , directory, name, keep] = process.argv;
const lock = await Lock.acquire(directory, name, { command: 'holder' });
process.stdout.write('held\n');
process.stdin.on('data', () => {});
process.stdin.on('end', () => lock.release({ keep: keep === 'keep' }));
