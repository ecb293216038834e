import { SCRIPT } from './script.js';

/**
 * The script of a gate's starts: that of a limit, with windows and keys in place of a count. What is held is a start that
 * has been granted and has not begun; a start that has begun is an entry in its windows.
 *
 *     KEYS   7… one hash for each window: of 16 slices each, by their number, what they count (MessagePack)
 *     ARGV   behind the header, as JSON: { w: [[id, limit, perMs, sliceMs, perCall]…], s: [shared window…],
 *            k: [[key, [window…]]…], t: the longest perMs }; windows by their position in `w`
 *     reply  15 [states, where it renews: key, why, ms…; windows that lack what was lost: id…; ms until the head of the queue can start, or -1;
 *            where it renews, the free part of each key in thousandths]
 *
 * A granted id is followed by `/key`, and by `/t` if the start is on trial after a cooldown. More operations:
 *
 *     S id age more             a granted start has begun, so many ms ago, and weighs so much more than was estimated.
 *                               Answers the time from which it counts, or 0 if it was not reserved
 *     V key age at more         corrects the weight of a start that began so long ago, or counts from that time (0: unknown)
 *     M window number n (age amount)…  reports starts again, after a loss of data or a change of windows: once for each
 *                               member, window and number
 *     C key why ms inFlight     puts a key out of use; -1 ms: until it is restored
 *     O key · N key             a start on trial succeeded · ended without a verdict
 *     U key                     puts a key back into use
 *
 * Pushes: `<channel>` `K key why ms` (`ready`: back in use) · `<channel>:<member>` `W ms`: the member's waiter is first, and
 * can start then.
 *
 * Invariants:
 * - What is reserved counts without end; what a dead member reserved counts from when that is noticed.
 * - An entry counts until the end of its slice plus perMs: never too short, and too long by a thousandth of perMs at most.
 * - Of each window, meta has the sum of all slices, the number of blocks, and the first slice: it is in the first block, and
 *   none before it counts anything. So a step reads what it changes, and nothing else.
 * - Windows and keys outlive the members, by the longest window.
 * - After a cooldown one start goes first. Each success allows one more on trial; a second without a rejection counts as one.
 */
const FRAGMENTS: Readonly<Record<string, string>> = {
  declare: `
local spec = cjson.decode(ARGV[firstOperation])
firstOperation = firstOperation + 1
local W, K = spec.w, spec.k
local metaTtl = math.max(ttl, spec.t)
keeps = true
local BLOCK = 16
local sum, reserved, cards, firstSlice, dirty, keyAt = {}, {}, {}, {}, {}, {}
-- Blocks that were read (false: not there), those to be written, and windows to which slices were added.
local blocks, changed, grown = {}, {}, {}
-- How a reservation ends; that of a member that is gone has begun now.
local starting, more, isCancelled = nil, 0, false
local chosen, isTrial, startWait = nil, false, nil
for i, w in ipairs(W) do
  local v = call('HMGET', META, 'ws:' .. w[1], 'wr:' .. w[1], 'wn:' .. w[1], 'wf:' .. w[1])
  sum[i], reserved[i], cards[i], firstSlice[i] = tonumber(v[1]) or 0, tonumber(v[2]) or 0, tonumber(v[3]) or 0, tonumber(v[4]) or 0
  blocks[i], changed[i] = {}, {}
end
for k, key in ipairs(K) do keyAt[key[1]] = k end

local function amountOf(i, weight)
  if W[i][5] == 1 then return 1 end
  return weight
end

local function blockOf(i, n)
  local block = blocks[i][n]
  if block == nil then
    local packed = call('HGET', KEYS[6 + i], n)
    block = packed and cmsgpack.unpack(packed)
    blocks[i][n] = block
  end
  return block
end

local function write(i)
  for n in pairs(changed[i]) do call('HSET', KEYS[6 + i], n, cmsgpack.pack(blocks[i][n])) end
  if grown[i] then call('PEXPIRE', KEYS[6 + i], W[i][3] + W[i][4] + ttl) end
  changed[i], grown[i] = {}, nil
end

-- Enters a start into a window; a negative amount corrects it.
local function addStart(i, startedMs, amount)
  local w = W[i]
  local slice = math.ceil((startedMs + 1) / w[4])
  if amount == 0 or slice * w[4] + w[3] <= now then return end
  local n = floor(slice / BLOCK)
  local at, block = slice - n * BLOCK + 1, blockOf(i, n)
  if cards[i] == 0 then firstSlice[i] = slice end
  if not block then
    block = {}
    blocks[i][n] = block
    cards[i] = cards[i] + 1
  end
  if not block[at] then grown[i] = true end
  block[at] = (block[at] or 0) + amount
  firstSlice[i] = math.min(firstSlice[i], slice)
  sum[i] = sum[i] + amount
  changed[i][n], dirty[i] = true, true
end

local function readAll(i)
  write(i)
  local all = call('HGETALL', KEYS[6 + i])
  sum[i], cards[i], firstSlice[i] = 0, #all / 2, math.huge
  for at = 1, #all, 2 do
    local n, block = tonumber(all[at]), cmsgpack.unpack(all[at + 1])
    blocks[i][n], firstSlice[i] = block, math.min(firstSlice[i], n * BLOCK)
    for _, amount in pairs(block) do sum[i] = sum[i] + amount end
  end
end

-- Removes what no longer counts.
local function removeEnded(i)
  local w = W[i]
  local oldest = floor((now - w[3]) / w[4])
  while cards[i] > 0 and firstSlice[i] <= oldest do
    local n = floor(firstSlice[i] / BLOCK)
    local block, left = blockOf(i, n), nil
    for at, amount in pairs(block) do
      local slice = n * BLOCK + at - 1
      if slice <= oldest then
        sum[i], block[at] = sum[i] - amount, nil
      else
        left = math.min(left or slice, slice)
      end
    end
    dirty[i] = true
    changed[i][n] = left and true
    if not left then
      write(i)
      call('HDEL', KEYS[6 + i], n)
      blocks[i][n] = false
      cards[i] = cards[i] - 1
      left = math.huge
      for _, other in ipairs(call('HKEYS', KEYS[6 + i])) do left = math.min(left, other * BLOCK) end
    end
    firstSlice[i] = left
  end
end

local function windowsOf(k)
  local windows = {}
  for _, i in ipairs(spec.s) do windows[#windows + 1] = i end
  if k then for _, i in ipairs(K[k][2]) do windows[#windows + 1] = i end end
  return windows
end

local function windowWait(i, weight)
  local w, amount = W[i], amountOf(i, weight)
  if amount == 0 then return 0 end
  if amount > w[2] then return math.huge end
  local excess = sum[i] + reserved[i] + amount - w[2]
  if excess <= 0 then return 0 end
  local seen = 0
  for n = floor(firstSlice[i] / BLOCK), floor((now + ttl) / w[4] / BLOCK) do
    if seen == cards[i] then break end
    local block = blockOf(i, n)
    for at = 1, block and BLOCK or 0 do
      excess = excess - (block[at] or 0)
      if excess <= 0 then return (n * BLOCK + at - 1) * w[4] + w[3] - now end
    end
    if block then seen = seen + 1 end
  end
  -- The rest is reserved, and begins now at the earliest.
  return w[3]
end

local function ready(key)
  call('HDEL', META, 'ku:' .. key, 'kw:' .. key, 'ka:' .. key, 'ki:' .. key, 'kt:' .. key, 'kb:' .. key)
  call('PUBLISH', channel, 'K ' .. key .. ' ready 0')
end

local function keyWait(key)
  local v = call('HMGET', META, 'ku:' .. key, 'ka:' .. key, 'ki:' .. key, 'kt:' .. key, 'kb:' .. key)
  local untilMs = tonumber(v[1])
  if not untilMs then return 0, false end
  if now < untilMs then return untilMs - now, false end
  local allowed, inFlight, trials, began = tonumber(v[2]) or 1, tonumber(v[3]) or 1, tonumber(v[4]) or 0, tonumber(v[5]) or 0
  if trials > 0 and now >= began + 1000 then
    allowed, trials = allowed + trials, 0
    if allowed > inFlight then
      ready(key)
      return 0, false
    end
    call('HSET', META, 'ka:' .. key, allowed, 'kt:' .. key, 0)
  end
  if trials < allowed then return 0, true end
  return began + 1000 - now, false
end

-- A start on trial has ended without a verdict, and may have been counted as a success before.
local function endTrial(key)
  local trials = tonumber(call('HGET', META, 'kt:' .. key))
  if trials and trials > 0 then call('HINCRBY', META, 'kt:' .. key, -1) end
end

-- Chooses the key with the largest free part; of equals the least recently used.
local function fitsStart(weight)
  local shared, soonest, bestFree, bestUsed = 0, math.huge, -1, 0
  chosen = nil
  for _, i in ipairs(spec.s) do shared = math.max(shared, windowWait(i, weight)) end
  for k, key in ipairs(K) do
    local rate, free = shared, 1
    for _, i in ipairs(key[2]) do
      rate = math.max(rate, windowWait(i, weight))
      free = math.min(free, (W[i][2] - sum[i] - reserved[i]) / W[i][2])
    end
    local state, trial = keyWait(key[1])
    local wait = math.max(rate, state)
    if wait > 0 then
      soonest = math.min(soonest, wait)
    else
      local usedAt = 0
      if #K > 1 then usedAt = tonumber(call('HGET', META, 'kl:' .. key[1]) or 0) end
      if free > bestFree or (free == bestFree and usedAt < bestUsed) then
        chosen, isTrial, bestFree, bestUsed = k, trial, free, usedAt
      end
    end
  end
  startWait = nil
  if not chosen and soonest < 9e15 then startWait = soonest end
  return chosen ~= nil
end

local function tagOf(member, id)
  return call('HGET', META, 'r:' .. member .. ':' .. id) or ''
end
`,
  keep: `
  if key == META then
    call('PEXPIRE', key, metaTtl)
    return
  end
`,
  begun: `
  for i, w in ipairs(W) do
    local before, owed = cards[i], reserved[i]
    readAll(i)
    if cards[i] == 0 or cards[i] < before then call('HSET', META, 'wl:' .. w[1], 1) end
    reserved[i], dirty[i] = 0, true
    -- What was reserved may begin until the leases end.
    addStart(i, now + lease, owed)
  end
`,
  save: `
  if nHolds == 0 then
    for i in ipairs(W) do
      if reserved[i] ~= 0 then reserved[i], dirty[i] = 0, true end
    end
  end
  for i in pairs(dirty) do
    local id = W[i][1]
    write(i)
    call('HSET', META, 'ws:' .. id, sum[i], 'wr:' .. id, reserved[i], 'wn:' .. id, cards[i], 'wf:' .. id, cards[i] > 0 and firstSlice[i] or 0)
  end
  dirty = {}
`,
  // No script for two leases: all members are gone, and the keys with a shorter life have expired.
  loaded: `
if epoch and clock + offset - last > ttl then
  call('DEL', QUEUE, HOLDS, LEASES)
  for _, field in ipairs(call('HKEYS', META)) do
    if match(field, '^[gjmpr]:') then call('HDEL', META, field) end
  end
  nHolds, nQueue, nLeases, used, nextEnd, current = 0, 0, 0, 0, 0, nil
  now = clock + offset
  for i in ipairs(W) do
    if reserved[i] > 0 then addStart(i, now, reserved[i]) end
    reserved[i], dirty[i] = 0, true
    write(i)
  end
end
local function areWindowsLost()
  for i, w in ipairs(W) do
    if cards[i] > 0 and call('HLEN', KEYS[6 + i]) ~= cards[i] then
      if clock + offset - last < w[3] then return true end
      sum[i], cards[i], blocks[i], dirty[i] = 0, 0, {}, true
      call('DEL', KEYS[6 + i])
    end
  end
  return false
end
`,
  lost: 'or areWindowsLost()',
  ended: 'for i in ipairs(W) do removeEnded(i) end',
  hold: `
  local key = K[chosen][1]
  for _, i in ipairs(windowsOf(chosen)) do
    reserved[i] = reserved[i] + amountOf(i, weight)
    dirty[i] = true
  end
  call('HSET', META, 'r:' .. member .. ':' .. id, '/' .. key .. (isTrial and '/t' or ''))
  if #K > 1 then call('HSET', META, 'kl:' .. key, call('HINCRBY', META, 'kn', 1)) end
  if isTrial then
    call('HINCRBY', META, 'kt:' .. key, 1)
    call('HSET', META, 'kb:' .. key, now)
  end
`,
  unhold: `
  local tag = tagOf(member, id)
  call('HDEL', META, 'r:' .. member .. ':' .. id)
  local key = match(tag, '^/([^/]+)')
  for _, i in ipairs(windowsOf(key and keyAt[key])) do
    local amount = amountOf(i, tonumber(weight))
    reserved[i] = math.max(0, reserved[i] - amount)
    dirty[i] = true
    if not isCancelled then addStart(i, starting or now, amount + (W[i][5] == 0 and more or 0)) end
  end
  if isCancelled and string.sub(tag, -2) == '/t' then endTrial(key) end
`,
  held: 'if held then for i = 2, #held do held[i] = held[i] .. tagOf(self, held[i]) end end',
  fits: 'do return now >= frozen and fitsStart(weight) end',
  granted: 'id = id .. tagOf(owner, id)',
  operations: `
local own = {
  S = function(i)
    local startedMs = now - tonumber(ARGV[i + 2])
    starting, more = startedMs, tonumber(ARGV[i + 3])
    local done = unhold(self, ARGV[i + 1])
    return done * startedMs, 4
  end,
  V = function(i)
    local startedMs = tonumber(ARGV[i + 3])
    if startedMs == 0 then startedMs = now - tonumber(ARGV[i + 2]) end
    for _, window in ipairs(windowsOf(keyAt[ARGV[i + 1]])) do
      if W[window][5] == 0 then addStart(window, startedMs, tonumber(ARGV[i + 4])) end
    end
    return 1, 5
  end,
  M = function(i)
    local id, n = ARGV[i + 1], tonumber(ARGV[i + 3])
    local field = 'm:' .. self .. ':' .. id
    local isNew = call('HGET', META, field) ~= ARGV[i + 2]
    if isNew then call('HSET', META, field, ARGV[i + 2]) end
    for window, w in ipairs(W) do
      if isNew and w[1] == id then
        for entry = i + 4, i + 2 + 2 * n, 2 do addStart(window, now - tonumber(ARGV[entry]), tonumber(ARGV[entry + 1])) end
      end
    end
    return 1, 4 + 2 * n
  end,
  C = function(i)
    local key, why, ms = ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
    local untilMs = now + ms
    if ms < 0 then untilMs = 9e15 end
    local v = call('HMGET', META, 'ku:' .. key, 'kw:' .. key, 'ki:' .. key)
    local present = tonumber(v[1])
    local isClosed = present and present > now
    if isClosed and (v[2] == 'quarantined' or (v[2] == 'exhausted' and why == 'cooldown')) and v[2] ~= why then return 0, 5 end
    if isClosed and v[2] == why and present >= untilMs then return 0, 5 end
    call('HSET', META, 'ku:' .. key, string.format('%.0f', untilMs), 'kw:' .. key, why, 'ki:' .. key, math.max(tonumber(v[3]) or 1, tonumber(ARGV[i + 4])))
    call('HDEL', META, 'ka:' .. key, 'kt:' .. key, 'kb:' .. key)
    call('PUBLISH', channel, 'K ' .. key .. ' ' .. why .. ' ' .. ARGV[i + 3])
    return 1, 5
  end,
  O = function(i)
    local key = ARGV[i + 1]
    local v = call('HMGET', META, 'ku:' .. key, 'ka:' .. key, 'ki:' .. key, 'kt:' .. key)
    if v[1] and now >= tonumber(v[1]) then
      local allowed = (tonumber(v[2]) or 1) + 1
      if allowed > (tonumber(v[3]) or 1) then
        ready(key)
      else
        call('HSET', META, 'ka:' .. key, allowed, 'kt:' .. key, math.max(0, (tonumber(v[4]) or 1) - 1))
      end
    end
    return 1, 2
  end,
  N = function(i)
    endTrial(ARGV[i + 1])
    return 1, 2
  end,
  U = function(i)
    ready(ARGV[i + 1])
    return 1, 2
  end,
}
`,
  operation: `
  isCancelled = letter ~= 'S'
  if own[letter] then result, size = own[letter](i) end
`,
  answer: "if letter == 'A' and result == 0 then result = '0' .. tagOf(self, ARGV[i + 1]) end",
  wake: `
if nQueue > 0 and now >= frozen and startWait then
  local head = call('ZRANGE', QUEUE, 0, 0)[1]
  local owner = match(head, '^%d+:([^:]+)')
  if owner == self then
    wake = math.min(wake, startWait)
  else
    -- Its member wakes; this one makes up for one that does not.
    wake = math.min(wake, startWait + 30)
    local mark = head .. '@' .. string.format('%.0f', now + startWait)
    if call('HGET', META, 'hd') ~= mark then
      call('HSET', META, 'hd', mark)
      call('PUBLISH', channel .. ':' .. owner, 'W ' .. math.ceil(startWait))
    end
  end
end
local states, missing, frees = false, {}, false
if renews then
  states, frees = {}, {}
  for k, key in ipairs(K) do
    local free = 1
    for _, i in ipairs(windowsOf(k)) do free = math.min(free, (W[i][2] - sum[i] - reserved[i]) / W[i][2]) end
    frees[k] = floor(1000 * math.max(0, free))
    local v = call('HMGET', META, 'ku:' .. key[1], 'kw:' .. key[1])
    if v[1] then
      local ms = tonumber(v[1]) - now
      if ms > 0 then
        states[#states + 1] = key[1]
        states[#states + 1] = v[2]
        states[#states + 1] = ms > 4e15 and -1 or math.ceil(ms)
      end
    end
  end
end
if joins then
  for _, w in ipairs(W) do
    if call('HEXISTS', META, 'wl:' .. w[1]) == 1 then missing[#missing + 1] = w[1] end
  end
end
extra = {states, missing, startWait and math.ceil(startWait) or -1, frees}
`,
};

/** The script of `script.ts` with the fragments above in it. */
export const STARTS_SCRIPT = /* @__PURE__ */ SCRIPT.replace(
  /^ *--@(\w+)$/gm,
  (_, name: string) => FRAGMENTS[name] as string,
);
