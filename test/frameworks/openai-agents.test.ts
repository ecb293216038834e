import { createResearch } from '../../examples/frameworks/openai-agents/main.js';
import { testFramework } from './support.js';

testFramework('openai-agents', createResearch);
