import { createResearch } from '../../examples/frameworks/langgraph/main.js';
import { testFramework } from './support.js';

testFramework('langgraph', createResearch);
