import { describeTransport } from '../../contracts/transport.js';

// fuse-native has no lseek, passes on times as milliseconds and inode numbers as 32 bits.
describeTransport({ kind: 'native', findsHoles: false, timeUnit: 1_000_000n, longInodes: false });
