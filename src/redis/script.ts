import { TENANTS_SCRIPT } from './tenants-script.js';

/** The keys of a limit, in the order in which the script receives them: the names behind its prefix. */
export const LIMIT_KEYS = ['meta', 'queue', 'holds', 'leases', 'tenants', 'lanes'] as const;

/**
 * What each batch changes, as one field: the time of the batch, the last number in the queue, the weight in use, when the first
 * lease ends, how many waiters were granted, the end of a freeze; how many holds, entries of the queue and leases there are,
 * and whether there are tenants (0 or 1). In 64 bytes, up to which Redis stores a small hash in one piece.
 */
export const BATCH_STATE = '<ddddddi4i4i4i4';

/**
 * The script that Redis runs for every step of a fleet limit: one script for everything, so that each step is atomic.
 *
 * ## A batch
 *
 * A member sends what its event-loop turn has brought together as one batch, and one batch at a time for each limit.
 *
 *     KEYS   1 meta (hash) · 2 queue (sorted set) · 3 holds (hash) · 4 leases (sorted set) · 5 tenants (hash) · 6 lanes (sorted set)
 *     ARGV   the header, then operations
 *     header 1 mode: `batch`, `renew` (a batch that also renews the lease), `join`, `local` (a join of a member that may hold its share of the
 *            limit), or `leave`  2 member  3 generation  4 epoch (empty: none known)  5 leaseMs
 *            except for `batch` and `leave`: 6 pushes received  7 limit  8 version of the limit
 *            9 number of an echo to push to the member itself (0: none)
 *     reply  [0, epoch, wakeMs, limit, version, used, queued, members, rank, frozen, granted, held, lost, results, extra, served]
 *     reply  [1]: not executed. The member or its epoch is unknown, or data was lost: join
 *     reply  [2]: not executed. The generation is older than the one that Redis knows
 *
 * `granted` are the ids of this member's waiters that the batch itself has granted. `held`, where pushes were lost and
 * after a join, are the number of pushes so far and the ids of all that Redis counts as held by this member, else nil. `lost` are ids that a join claimed in
 * vain. `results` has one entry for each operation. `wakeMs` is when a waiter should look again: the next expiry of a
 * lease, or the end of a freeze. `served` counts the waiters that were granted in this epoch.
 *
 * Each operation is its letter and its arguments:
 *
 *     H id weight               claim a held permit (`weight:tenant` for that of a tenant, after a `+` with aging); only
 *                               directly after the header of a join
 *     A id score weight seq     acquire: 0 granted, else the number in the queue. `seq` is that number when a waiter
 *                               is queued again after a failure, else empty; with a `?` after it, how many are ahead follows
 *                               in the answer. `score`: lower goes first; one that starts with + is added to the time of
 *                               arrival in milliseconds (aging)
 *     F id score weight seq tenant by share cap guaranteed
 *                               the same for a tenant. `by`: what tenants share, `time`, `weight` or `requests`; `cap`: 0 for none
 *     P id score weight seq     how many are ahead of a waiter (`weight:tenant` for that of a tenant)
 *     R id · B id               release: 1, or 0 if it was not held · of a permit that was not used: its tenant is not charged
 *     X id score weight seq     leave the queue (`weight:tenant` for that of a tenant); releases the permit if it was granted meanwhile
 *     L limit                   set the limit for all members
 *
 * A line `--@name` is where `starts-script.ts` inserts the Lua of a gate's windows and keys.
 *
 * ## Pushes
 *
 *     <prefix>:push:<member>   `G epoch generation number id…` granted · `P number` an echo
 *     <prefix>:push            `E epoch` data was lost: join again · `L epoch` the limit has changed
 *
 * ## Invariants
 *
 * - Whatever is granted is in `holds` before its owner learns of it; `used` is the weight of all holds.
 * - A member without a lease has neither holds nor waiters, and nothing that an older generation sent is executed.
 * - The clock of Redis never runs back here: `o` makes up for a step back. When no script ran for half a lease, leases are
 *   renewed instead of ended: the members may have been unable to renew them.
 * - Loss of data is noticed before anything else is done: by the `run_id` of the server, by the sizes of the keys, by an
 *   epoch that a member remembers. A new epoch then begins, which grants nothing for one lease, until which all holders
 *   have claimed theirs again or have lost them. Claims are accepted only then.
 * - From the first tenant on, all waiters are in lanes, and the queue has the next of each lane (`tenants-script.ts`).
 * - What a tenant holds and has received is in the meta hash while it holds or waits; `tenants` remembers others, up to a bound.
 * - Every key expires two leases after the last heartbeat.
 */
export const SCRIPT: string = /* lua */ `
local META, QUEUE, HOLDS, LEASES, TENANTS, LANES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local mode, self, generation, known, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local isLocal = mode == 'local'
local joins = mode == 'join' or isLocal
local renews = joins or mode == 'renew'
local firstOperation = renews and 10 or 6
local channel = string.sub(META, 1, -5) .. 'push'
-- Functions that every run makes name what these are in full: each local that they use costs time whenever they are made.
local call, floor, match = redis.call, math.floor, string.match

local time = call('TIME')
local clock = time[1] * 1000 + floor(time[2] / 1000)
local info = redis.pcall('INFO', 'server')
local run = ''
if type(info) == 'string' then
  -- A pattern would be tried at every character of the text: a sixth of the time of the whole script.
  local from = string.find(info, 'run_id:', 1, true)
  run = from and match(info, '^%x+', from + 7) or ''
end

local f = call('HMGET', META, 'b', 'e', 'r', 'l', 'v', 'o', 'g:' .. self)
local last, seq, used, nextEnd, served, frozen, nHolds, nQueue, nLeases, isShared = 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
if f[1] then last, seq, used, nextEnd, served, frozen, nHolds, nQueue, nLeases, isShared = struct.unpack('${BATCH_STATE}', f[1]) end
local epoch, stored = f[1] and f[2], f[3]
local limit, version, offset, current = tonumber(f[4]), tonumber(f[5]), tonumber(f[6]) or 0, tonumber(f[7])
-- What tenants have in common, once one was named; those that this script has read, and those to be shown in the queue.
local inCommon = isShared == 1 and call('HGET', META, 'ts')
local sharing, tenants, unshown = inCommon and cmsgpack.unpack(inCommon), {}, {}
local now, ttl = clock + offset, math.ceil(2 * lease) + 1000
local granted, pushes, pushed = {}, {}, {}
-- Whether its state outlives the members, and what its reply adds.
local keeps, extra = false, false
--@declare

local function keep(key)
  --@keep
  call('PEXPIRE', key, ttl)
end

--@loaded
local isLost = epoch and ((run ~= '' and stored ~= '' and run ~= stored) or call('HLEN', HOLDS) ~= nHolds
  or call('ZCARD', QUEUE) ~= nQueue or call('ZCARD', LEASES) ~= nLeases
  or (sharing and call('ZCARD', LANES) ~= sharing.entries)
  --@lost
)

local function nameOf(number, id, weight)
  return number .. ':' .. self .. ':' .. id .. ':' .. weight
end

local function nextNumber()
  seq = math.max(seq + 1, now * 1000)
  return string.format('%016.0f', seq)
end

-- When a waiter is due, with aging: its arrival, put off by its level.
local function dueOf(number, level)
  return math.floor(tonumber(number) / 1000) + level
end
${TENANTS_SCRIPT}
-- What tenants share by, from the first one on.
local function share(by, aged)
  if not sharing then
    useTenants()
    beginSharing(by, aged)
  end
  sharing.by = by
end

-- The value has the weight, and for a tenant what "charge" returns.
local function hold(member, id, weight, value)
  call('HSET', HOLDS, member .. ':' .. id, value or weight)
  if nHolds == 0 then keep(HOLDS) end
  nHolds = nHolds + 1
  used = used + weight
  --@hold
end

local function unhold(member, id, isUnused)
  local field = member .. ':' .. id
  local value = call('HGET', HOLDS, field)
  if not value then return 0 end
  local weight, tenant, charged, grantedMs = string.match(value, '^(%d+):([^:]*):?([^:]*):?(%d*)$')
  weight = tonumber(weight or value)
  call('HDEL', HOLDS, field)
  nHolds = nHolds - 1
  used = used - weight
  --@unhold
  if tenant then settle(tenant, weight, charged, grantedMs, isUnused) end
  return 1
end

local held, lost, refused = false, {}, nil
local at = firstOperation
-- Most batches need nothing of what follows. Its functions are made here: Lua would make them each time that the script runs.
local isRoutine = mode == 'batch' and not isLost and known == epoch and current == generation
  and now >= last and now < nextEnd and now <= last + lease / 2
if not isRoutine then
  -- Begins a new epoch; a freeze gives holders the time to claim what they hold.
  local function begin(freezes)
    call('DEL', META, QUEUE, HOLDS, LEASES, TENANTS, LANES)
    sharing, tenants, unshown, served = false, {}, {}, 0
    epoch = string.format('%.0f', clock) .. self .. generation
    limit, version, seq, used = tonumber(ARGV[7]), tonumber(ARGV[8]), 0, 0
    nHolds, nQueue, nLeases, offset, last, nextEnd, current, stored = 0, 0, 0, 0, clock, 0, nil, run
    now = clock
    frozen = 0
    if freezes then
      frozen = now + lease
      call('PUBLISH', channel, 'E ' .. epoch)
    end
    call('HSET', META, 'e', epoch, 'r', run, 'l', limit, 'v', version)
    keep(META)
    --@begun
  end

  local function dropWaiters(member)
    if sharing then
      if sharing.waiting == 0 then return end
      -- From the last to the first of each lane, so that what stands for the lane changes once.
      for _, entry in ipairs(call('ZREVRANGE', LANES, 0, -1)) do
        local tenant, level, waiter, owner = match(entry, '^([^:#@]*):(%d+):(%d+:([^:]+):.*)$')
        if owner == member then leave(tenant, level, waiter) end
      end
      return
    end
    if nQueue == 0 then return end
    for _, waiter in ipairs(call('ZRANGE', QUEUE, 0, -1)) do
      if match(waiter, '^%d+:([^:]+)') == member then
        call('ZREM', QUEUE, waiter)
        nQueue = nQueue - 1
      end
    end
  end

  local function holdsOf(member)
    local mine = {}
    if nHolds > 0 then
      local mark = member .. ':'
      local all = call('HGETALL', HOLDS)
      for i = 1, #all, 2 do
        if string.find(all[i], mark, 1, true) == 1 then
          mine[string.sub(all[i], #mark + 1)] = all[i + 1]
        end
      end
    end
    return mine
  end

  local function removeMember(member)
    call('ZREM', LEASES, member)
    nLeases = nLeases - 1
    call('HDEL', META, 'g:' .. member, 'p:' .. member, 'j:' .. member)
    for id in pairs(holdsOf(member)) do unhold(member, id) end
    dropWaiters(member)
  end

  local function findNextEnd()
    local first = call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')
    nextEnd = tonumber(first[2]) or 0
  end

  local function report(number)
    held = { number }
    for id in pairs(holdsOf(self)) do held[#held + 1] = id end
  end

  if not joins and (isLost or not epoch) then return {1} end
  local began = isLost or not epoch
  if isLost then
    begin(true)
  elseif not epoch then
    if known ~= '' or call('EXISTS', QUEUE, HOLDS, LEASES, LANES) > 0 then
      begin(true)
    else
      local uptime, clustered = 0, false
      if run ~= '' then
        uptime = tonumber(match(info, 'uptime_in_seconds:(%d+)')) * 1000
        clustered = match(info, 'redis_mode:cluster') ~= nil
      end
      -- In whole seconds, and up to one too many.
      uptime = uptime - 1000
      -- Members that survived a loss of data are still subscribed. A cluster counts the subscribers of one node only.
      begin(isLocal or run == '' or uptime < lease or clustered or call('PUBLISH', channel, 'E') > 0)
    end
  elseif stored == '' and run ~= '' then
    call('HSET', META, 'r', run)
  end

  if now < last then
    offset = offset + last - now
    now = last
    call('HSET', META, 'o', offset)
  end

  local silent = now - last > lease / 2
  -- All members were without Redis, and may hold their shares. What they sent before may come first.
  if silent and now >= frozen and (isLocal or call('HEXISTS', META, 'ls') == 1) then frozen = now + lease end

  -- Leases that have ended.
  if nLeases > 0 and now >= nextEnd then
    for _, member in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', now)) do
      if silent then
        call('ZADD', LEASES, now + lease, member)
      else
        removeMember(member)
        if member == self then current = nil end
      end
    end
    findNextEnd()
  end

  if joins then
    if current and generation <= current then
      refused = 2
    else
      local mine = holdsOf(self)
      if current and not isLocal and not began and known == epoch and now >= frozen then
        -- A hold that Redis does not know, of a member that it does know: data was lost although INFO does not say so.
        local probe = at
        while ARGV[probe] == 'H' do
          if not mine[ARGV[probe + 1]] then
            began = true
            begin(true)
            mine = {}
            break
          end
          probe = probe + 3
        end
      end
      while ARGV[at] == 'H' do
        local id = ARGV[at + 1]
        local aged, weight, tenant = match(ARGV[at + 2], '^(%+?)(%d+):?(.*)$')
        weight = tonumber(weight)
        if not mine[id] then
          if now < frozen or (isLocal and used + weight <= limit) then
            if tenant ~= '' then share(sharing and sharing.by or 'time', aged == '+') end
            hold(self, id, weight, tenant ~= '' and charge(tenant, weight, true))
          else
            lost[#lost + 1] = id
          end
        end
        at = at + 3
      end
      dropWaiters(self)
      local suggested = tonumber(ARGV[8])
      if suggested > version then
        limit, version = tonumber(ARGV[7]), suggested
        call('HSET', META, 'l', limit, 'v', version)
      end
      if not current then
        nLeases = nLeases + 1
        call('HSET', META, 'j:' .. self, call('HINCRBY', META, 'j', 1))
      end
      if isLocal then call('HSET', META, 'ls', 1) end
      current = generation
      call('HSET', META, 'g:' .. self, generation, 'p:' .. self, 0)
      report(0)
    end
  elseif current ~= generation or (known ~= epoch and mode ~= 'leave') then
    -- One that leaves may not know yet of which epoch it is a member.
    refused = 1
  elseif mode == 'leave' then
    removeMember(self)
    findNextEnd()
  end

  if renews and not refused then
    call('ZADD', LEASES, now + lease, self)
    findNextEnd()
    for i = 1, 6 do keep(KEYS[i]) end
    local pushesSent = not joins and tonumber(call('HGET', META, 'p:' .. self) or 0)
    if pushesSent and pushesSent ~= tonumber(ARGV[6]) then report(pushesSent) end
  end
end
--@ended
--@held
if renews and ARGV[9] ~= '0' and not refused then call('PUBLISH', channel .. ':' .. self, 'P ' .. ARGV[9]) end

local function fits(weight)
  --@fits
  return now >= frozen and (used + weight <= limit or used == 0)
end

local function enqueue(score, number, id, weight)
  local level = match(score, '^%+(.*)$')
  if level then score = string.format('%.0f', dueOf(number, tonumber(level))) end
  nQueue = nQueue + call('ZADD', QUEUE, score, nameOf(number, id, weight))
  if nQueue == 1 then keep(QUEUE) end
end

-- Waiters whose places are asked for: known after the grants.
local asked = {}

local function acquire(i, tenant)
  local id, score, weight = ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local number, asks = match(ARGV[i + 4], '^(%d*)(%??)$')
  -- In a join, also one whose reply was lost.
  if (joins or number ~= '') and call('HEXISTS', HOLDS, self .. ':' .. id) == 1 then return 0 end
  local isFree = nQueue == 0 and next(unshown) == nil
  local t = sharing and tenantOf(tenant)
  if t and (t.waiting > 0 or (t.cap > 0 and t.held + weight > t.cap)) then isFree = false end
  if number ~= '' then
    seq = math.max(seq, tonumber(number))
  elseif isFree and fits(weight) then
    if t then t.received = math.max(t.received, sharing.virtual) end
    hold(self, id, weight, t and charge(tenant, weight))
    return 0
  else
    number = nextNumber()
  end
  if t then enter(tenant, encoded(levelOf(score)), nameOf(number, id, weight)) else enqueue(score, number, id, weight) end
  if asks ~= '' then asked[#asked + 1] = { i, tenant, score, nameOf(number, id, weight) } end
  return number
end

--@operations
local results, resultAt = {}, {}
while ARGV[at] and not refused do
  local letter, i = ARGV[at], at
  local result, size
  --@operation
  if size then
    -- One of a gate's starts.
  elseif letter == 'R' or letter == 'B' then
    result, size = unhold(self, ARGV[i + 1], letter == 'B'), 2
  elseif letter == 'A' then
    result, size = acquire(i, ''), 5
  elseif letter == 'F' then
    local tenant = ARGV[i + 5]
    share(ARGV[i + 6], string.sub(ARGV[i + 2], 1, 1) == '+')
    local t = tenantOf(tenant)
    local cap, guaranteed = tonumber(ARGV[i + 8]), tonumber(ARGV[i + 9])
    if t.waiting > 0 and (t.cap ~= cap or t.guaranteed ~= guaranteed) then unshown[tenant] = t end
    t.share, t.cap, t.guaranteed = tonumber(ARGV[i + 7]), cap, guaranteed
    result, size = acquire(i, tenant), 10
  elseif letter == 'P' then
    local weight, tenant = match(ARGV[i + 3], '^(%d+):?(.*)$')
    asked[#asked + 1] = { i, tenant, ARGV[i + 2], nameOf(ARGV[i + 4], ARGV[i + 1], weight) }
    result, size = '', 5
  elseif letter == 'X' then
    local id, number, weight, tenant = ARGV[i + 1], ARGV[i + 4], match(ARGV[i + 3], '^(%d+):?(.*)$')
    local waiter, isRemoved = nameOf(number, id, weight), false
    if sharing then
      isRemoved = leave(tenant, encoded(levelOf(ARGV[i + 2])), waiter)
    else
      isRemoved = call('ZREM', QUEUE, waiter) == 1
      if isRemoved then nQueue = nQueue - 1 end
    end
    result, size = isRemoved and 1 or unhold(self, id), 5
  elseif letter == 'L' then
    -- More than what members send after a loss of data that know of no change.
    limit, version = tonumber(ARGV[i + 1]), math.max(1, version) + 1
    call('HSET', META, 'l', limit, 'v', version)
    call('PUBLISH', channel, 'L ' .. epoch)
    result, size = version, 2
  end
  --@answer
  results[#results + 1] = result
  resultAt[at] = #results
  at = at + size
end

-- Grants, in the order of the queue.
if sharing and not refused then showChanged() end
while nQueue > 0 and now >= frozen and (used < limit or used == 0) and not refused do
  local tenant, level, waiter
  if sharing then
    tenant, level, waiter = match(nextInLanes(), '^([^:]*):(%d+):(.*)$')
  else
    waiter = call('ZRANGE', QUEUE, 0, 0)[1]
  end
  local owner, id, weight = match(waiter, '^%d+:([^:]+):([^:]+):(%d+)$')
  weight = tonumber(weight)
  if not fits(weight) then break end
  if tenant then
    local state = sharing.levels and sharing.levels[level]
    leave(tenant, level, waiter)
    hold(owner, id, weight, charge(tenant, weight))
    if state then state.virtual = sharing.virtual end
    unshown[tenant] = tenantOf(tenant)
    showChanged()
  else
    call('ZREM', QUEUE, waiter)
    nQueue = nQueue - 1
    hold(owner, id, weight)
  end
  served = served + 1
  --@granted
  if owner == self then
    granted[#granted + 1] = id
  elseif pushes[owner] then
    pushes[owner] = pushes[owner] .. ' ' .. id
  else
    pushes[owner] = id
    pushed[#pushed + 1] = owner
  end
end
for _, ask in ipairs(asked) do
  local result, ahead = resultAt[ask[1]]
  if sharing then ahead = aheadInLanes(ask[2], ask[3], ask[4]) else ahead = call('ZRANK', QUEUE, ask[4]) end
  if ahead then results[result] = results[result] .. ' ' .. ahead end
end
for _, owner in ipairs(pushed) do
  local number = call('HINCRBY', META, 'p:' .. owner, 1)
  call('PUBLISH', channel .. ':' .. owner, 'G ' .. epoch .. ' ' .. call('HGET', META, 'g:' .. owner) .. ' ' .. number .. ' ' .. pushes[owner])
end

if nLeases == 0 and not keeps and not refused then
  call('DEL', META, QUEUE, HOLDS, LEASES, TENANTS, LANES)
else
  --@save
  local fields = sharing and tenantFields() or {}
  call('HSET', META, 'b', struct.pack('${BATCH_STATE}', now, seq, used, nextEnd, served, frozen, nHolds, nQueue, nLeases, sharing and 1 or 0), unpack(fields))
end
if refused then return {refused} end

local wake = nextEnd - now
if now < frozen then wake = frozen - now end
--@wake
local rank = 0
if renews and nLeases > 0 then
  local joined = tonumber(call('HGET', META, 'j:' .. self)) or 0
  for _, member in ipairs(call('ZRANGE', LEASES, 0, -1)) do
    if tonumber(call('HGET', META, 'j:' .. member) or 0) < joined then rank = rank + 1 end
  end
end
return {0, epoch, math.ceil(wake), limit, version, used, sharing and sharing.waiting or nQueue, nLeases, rank, now < frozen and 1 or 0, granted, held, lost, results, extra, served}
`;
