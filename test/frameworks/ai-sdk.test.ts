import { createResearch } from '../../examples/frameworks/ai-sdk/main.js';
import { testFramework } from './support.js';

testFramework('ai-sdk', createResearch);
