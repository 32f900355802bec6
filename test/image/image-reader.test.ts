import { imageReaderContract } from '../contracts/image-reader.js';
import { openImage, openThroughView } from './open-image.js';

imageReaderContract('extent reader', openImage);
imageReaderContract('raw view', openThroughView);
