/**
 * The script that Redis runs for every step of a fleet limit: one script for everything, so that each step is atomic.
 *
 * ## A batch
 *
 * A member sends what its event-loop turn has brought together as one batch, and one batch at a time for each limit.
 *
 *     KEYS   1 meta (hash) · 2 queue (sorted set) · 3 holds (hash) · 4 leases (sorted set) · 5 tenants (hash) · 6 lanes (sorted set)
 *     ARGV   the header, then operations
 *     header 1 mode: `batch`, `join`, or `local` (a join of a member that may hold its share of the limit)  2 channel  3 member  4 generation  5 epoch (empty: none known)  6 leaseMs
 *            7 whether this renews the lease (0 or 1)  8 pushes received  9 limit  10 version of the limit
 *            11 number of an echo to push to the member itself (0: none)
 *     reply  [0, epoch, wakeMs, limit, version, used, queued, members, rank, frozen, granted, held, lost, results]
 *     reply  [1]: not executed. The member or its epoch is unknown, or data was lost: join
 *     reply  [2]: not executed. The generation is older than the one that Redis knows
 *
 * `granted` are the ids of this member's waiters that the batch itself has granted. `held`, where pushes were lost and
 * after a join, are the number of pushes so far and the ids of all that Redis counts as held by this member, else nil. `lost` are ids that a join claimed in
 * vain. `results` has one entry for each operation. `wakeMs` is when a waiter should look again: the next expiry of a
 * lease, or the end of a freeze.
 *
 * Each operation is its letter and its arguments:
 *
 *     H id weight               claim a held permit (`weight:tenant` for a tenant with a cap or a guarantee); only directly
 *                               after the header of a join
 *     A id score weight seq     acquire: 0 granted, else the number in the queue. `seq` is that number when a waiter
 *                               is queued again after a failure, else empty. `score`: lower goes first; one
 *                               that starts with + is added to the time of arrival in milliseconds (aging)
 *     F id score weight seq tenant cost share cap guaranteed
 *                               the same for a tenant. `cost`: `0` for its recent mean of permit-time, else a charge of 1,000
 *                               for each unit. `cap`: 0 for none. Answers a string of two numbers, the place by work received
 *                               first
 *     W tenant weight ms share  work that a tenant has received
 *     R id                      release: 1, or 0 if it was not held
 *     X id score weight seq     leave the queue (`weight:tenant` for that of a tenant); releases the permit if it was granted meanwhile
 *     L limit                   set the limit for all members
 *     Q                         leave the fleet, releasing everything
 *
 * A line `--@name` is where `starts-script.ts` inserts the Lua of a gate's windows and keys.
 *
 * ## Pushes
 *
 *     <channel>:<member>   `G epoch generation number id…` granted · `P number` an echo
 *     <channel>            `E epoch` data was lost: join again · `L epoch` the limit has changed
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
 * - The waiters of a tenant with a cap or a guarantee are in its lane, and only the first of them in the queue: while its cap
 *   has room for it, and ahead of all others while the tenant holds less than its guarantee. A step is O(log n).
 * - Every key expires two leases after the last heartbeat.
 */
export const SCRIPT = /* lua */ `
local META, QUEUE, HOLDS, LEASES, TENANTS, LANES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local mode, channel, self, generation, known = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local lease, renews = tonumber(ARGV[6]), ARGV[7] == '1'
local joins, isLocal = mode ~= 'batch', mode == 'local'
local call, floor, match = redis.call, math.floor, string.match

local time = call('TIME')
local clock = time[1] * 1000 + floor(time[2] / 1000)
local info = redis.pcall('INFO', 'server')
local run, uptime, clustered = '', 0, false
if type(info) == 'string' then
  run = match(info, 'run_id:(%x+)') or ''
end

local f = call('HMGET', META, 'e', 'r', 'l', 'v', 's', 'u', 'nh', 'nq', 'nb', 'f', 'o', 't', 'n', 'g:' .. self, 'na', 'nx')
local epoch = f[1]
local limit, version, seq, used = tonumber(f[3]), tonumber(f[4]), tonumber(f[5]), tonumber(f[6])
local nHolds, nQueue, nLeases = tonumber(f[7]), tonumber(f[8]), tonumber(f[9])
local frozen, offset, last, nextEnd = tonumber(f[10]), tonumber(f[11]), tonumber(f[12]), tonumber(f[13])
local current = tonumber(f[14])
-- Waiters in lanes, and how many of them are in the queue as well.
local nLanes, nShown = tonumber(f[15]) or 0, tonumber(f[16]) or 0
local stored = f[2]
local now, ttl = clock, 2 * lease + 1000
local granted, pushes, pushed = {}, {}, {}
-- Whether its state outlives the members, and what its reply adds.
local keeps, extra = false, nil
--@declare

local function keep(key)
  --@keep
  call('PEXPIRE', key, ttl)
end

-- Begins a new epoch; a freeze gives holders the time to claim what they hold.
local function begin(freezes)
  call('DEL', META, QUEUE, HOLDS, LEASES, TENANTS, LANES)
  nLanes, nShown = 0, 0
  epoch = string.format('%.0f', clock) .. self .. generation
  limit, version, seq, used = tonumber(ARGV[9]), tonumber(ARGV[10]), 0, 0
  nHolds, nQueue, nLeases, offset, last, nextEnd, current, stored = 0, 0, 0, 0, clock, 0, nil, run
  now = clock
  frozen = 0
  if freezes then
    frozen = now + lease
    call('PUBLISH', channel, 'E ' .. epoch)
  end
  call('HSET', META, 'e', epoch, 'r', run, 'l', limit, 'v', version, 'f', frozen, 'o', 0)
  keep(META)
  --@begun
end

local function save()
  --@save
  call('HSET', META, 't', now, 's', string.format('%.0f', seq), 'u', used, 'nh', nHolds, 'nq', nQueue, 'nb', nLeases, 'n', nextEnd)
  if nLanes > 0 or f[15] then call('HSET', META, 'na', nLanes, 'nx', nShown) end
end

--@loaded
local began = false
if not epoch then
  if not joins then return {1} end
  began = true
  if known ~= '' or call('EXISTS', QUEUE, HOLDS, LEASES, LANES) > 0 then
    begin(true)
  else
    if run ~= '' then
      uptime = tonumber(match(info, 'uptime_in_seconds:(%d+)')) * 1000
      clustered = match(info, 'redis_mode:cluster') ~= nil
    end
    -- In whole seconds, and up to one too many.
    uptime = uptime - 1000
    -- Members that survived a loss of data are still subscribed. A cluster counts the subscribers of one node only.
    begin(isLocal or run == '' or uptime < lease or clustered or call('PUBLISH', channel, 'E') > 0)
  end
else
  if (run ~= '' and stored ~= '' and run ~= stored) or call('HLEN', HOLDS) ~= nHolds
    or call('ZCARD', QUEUE) ~= nQueue or call('ZCARD', LEASES) ~= nLeases
    or (nLanes > 0 and call('ZCARD', LANES) ~= nLanes)
    --@lost
    then
    began = true
    begin(true)
  elseif stored == '' and run ~= '' then
    call('HSET', META, 'r', run)
  end
end

now = clock + offset
if now < last then
  offset = offset + last - now
  now = last
  call('HSET', META, 'o', offset)
end
--@clock

-- Scores are between -1e15 and 1e15.
local function laneEntry(tenant, score, name)
  return tenant .. ':' .. string.format('%016.0f', 2e15 + score) .. ':' .. name
end

local function firstOf(tenant)
  return call('ZRANGEBYLEX', LANES, '[' .. tenant .. ':', '(' .. tenant .. ';', 'LIMIT', 0, 1)[1]
end

-- What a tenant with a cap or a guarantee has in the queue, after anything has changed that it depends on.
local function show(tenant)
  local first = firstOf(tenant)
  local t = call('HMGET', META, 'tc:' .. tenant, 'th:' .. tenant, 'tx:' .. tenant)
  local held, shown, entry, score = tonumber(t[2]) or 0, t[3] or '', '', nil
  if first then
    local encoded, name, weight = match(first, '^[^:]*:(%d+):(%d+:[^:]+:[^:]+:(%d+).*)$')
    local cap, guaranteed = match(t[1] or '0:0', '^(%d+):(%d+)$')
    if cap == '0' or held + tonumber(weight) <= tonumber(cap) then
      local isUrgent = held < tonumber(guaranteed)
      entry, score = (isUrgent and '!' or '.') .. name, tonumber(encoded) - 2e15 - (isUrgent and 4e15 or 0)
    end
  end
  if entry ~= shown then
    if shown ~= '' then
      nQueue = nQueue - call('ZREM', QUEUE, string.sub(shown, 2))
      nShown = nShown - 1
    end
    if entry == '' then
      call('HDEL', META, 'tx:' .. tenant)
    else
      nQueue = nQueue + call('ZADD', QUEUE, string.format('%.0f', score), string.sub(entry, 2))
      nShown = nShown + 1
      if nQueue == 1 then keep(QUEUE) end
      call('HSET', META, 'tx:' .. tenant, entry)
    end
  end
  if not first and held == 0 then call('HDEL', META, 'tc:' .. tenant, 'th:' .. tenant) end
end

local function leaveLane(tenant, entry)
  if nLanes == 0 or call('ZREM', LANES, entry) == 0 then return false end
  nLanes = nLanes - 1
  return true
end

local function dropWaiters(member)
  if nLanes > 0 then
    local changed = {}
    for _, entry in ipairs(call('ZRANGE', LANES, 0, -1)) do
      local tenant, owner = match(entry, '^([^:]*):%d+:%d+:([^:]+):')
      if owner == member and leaveLane(tenant, entry) then
        changed[tenant] = true
        call('HINCRBY', TENANTS, 'n:' .. tenant, -1)
      end
    end
    for tenant in pairs(changed) do show(tenant) end
  end
  if nQueue == 0 then return end
  for _, waiter in ipairs(call('ZRANGE', QUEUE, 0, -1)) do
    local owner, tenant = match(waiter, '^%d+:([^:]+):[^:]+:%d+:?(.*)$')
    if owner == member then
      call('ZREM', QUEUE, waiter)
      nQueue = nQueue - 1
      if tenant ~= '' then call('HINCRBY', TENANTS, 'n:' .. tenant, -1) end
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

-- With a tenant, if that has a cap or a guarantee.
local function hold(member, id, weight, tenant)
  if tenant then call('HINCRBY', META, 'th:' .. tenant, weight) end
  call('HSET', HOLDS, member .. ':' .. id, tenant and weight .. ':' .. tenant or weight)
  if nHolds == 0 then keep(HOLDS) end
  nHolds = nHolds + 1
  used = used + weight
  --@hold
end

local function unhold(member, id)
  local field = member .. ':' .. id
  local weight = call('HGET', HOLDS, field)
  if not weight then return 0 end
  local tenant
  if not tonumber(weight) then weight, tenant = match(weight, '^(%d+):(.*)$') end
  call('HDEL', HOLDS, field)
  nHolds = nHolds - 1
  used = used - tonumber(weight)
  --@unhold
  if tenant then
    call('HINCRBY', META, 'th:' .. tenant, -weight)
    show(tenant)
  end
  return 1
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

local silent = now - last > lease / 2
-- All members were without Redis, and may hold their shares.
if isLocal and silent and now >= frozen then
  frozen = now + lease
  call('HSET', META, 'f', frozen)
end

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

local held, lost = false, {}
local at = 12
--@at

if joins then
  if current and generation <= current then
    save()
    return {2}
  end
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
    local id, text, tenant = ARGV[at + 1], match(ARGV[at + 2], '^(%d+):?(.*)$')
    local weight = tonumber(text)
    if not mine[id] then
      if now < frozen or (isLocal and used + weight <= limit) then hold(self, id, weight, tenant ~= '' and tenant or nil) else lost[#lost + 1] = id end
    end
    at = at + 3
  end
  dropWaiters(self)
  local suggested = tonumber(ARGV[10])
  if suggested > version then
    limit, version = tonumber(ARGV[9]), suggested
    call('HSET', META, 'l', limit, 'v', version)
  end
  if not current then
    nLeases = nLeases + 1
    call('HSET', META, 'j:' .. self, call('HINCRBY', META, 'j', 1))
  end
  current = generation
  call('HSET', META, 'g:' .. self, generation, 'p:' .. self, 0)
  held = { 0 }
  for id in pairs(holdsOf(self)) do held[#held + 1] = id end
elseif began or known ~= epoch or current ~= generation then
  save()
  return {1}
end

if renews then
  call('ZADD', LEASES, now + lease, self)
  findNextEnd()
  for i = 1, 6 do keep(KEYS[i]) end
  if not joins and tonumber(call('HGET', META, 'p:' .. self) or 0) ~= tonumber(ARGV[8]) then
    held = { tonumber(call('HGET', META, 'p:' .. self) or 0) }
    for id in pairs(holdsOf(self)) do held[#held + 1] = id end
  end
end
--@held
if ARGV[11] ~= '0' then call('PUBLISH', channel .. ':' .. self, 'P ' .. ARGV[11]) end

local function fits(weight)
  --@fits
  return now >= frozen and (used + weight <= limit or used == 0)
end

local function nameOf(number, id, weight)
  return number .. ':' .. self .. ':' .. id .. ':' .. weight
end

local function padded(number)
  return string.format('%016.0f', number)
end

local function scoreOf(score, number)
  if string.sub(score, 1, 1) ~= '+' then return score end
  return string.format('%.0f', floor(string.sub(number, -16) / 1000) + tonumber(string.sub(score, 2)))
end

local function enqueue(score, number, id, weight, suffix)
  score = scoreOf(score, number)
  nQueue = nQueue + call('ZADD', QUEUE, score, nameOf(number, id, weight) .. suffix)
  if nQueue == 1 then keep(QUEUE) end
end

local function nextNumber()
  seq = math.max(seq + 1, now * 1000)
  return padded(seq)
end

-- Start-time fair queueing (Goyal, Vin, Cheng 1996): the place of a tenant's request is where its work so far ends, and not
-- before the present virtual time, which is that of the last grant. In microseconds of work per unit of the limit.
local function charge(tenant, weight, cost, share)
  local t = call('HMGET', TENANTS, 'v', 'f:' .. tenant, 'm:' .. tenant, 'n:' .. tenant, 'm')
  if not t[1] then
    t[1] = now * 1000
    call('HSET', TENANTS, 'v', padded(t[1]))
    keep(TENANTS)
  end
  local work = (cost == 0 and (tonumber(t[3]) or tonumber(t[5]) or 100000) * weight or cost) / limit / share
  local virtual, place = tonumber(t[1]), tonumber(t[2] or 0)
  -- Without waiters it has no more ahead of it than what it may hold.
  if tonumber(t[4] or 0) <= 0 then place = math.min(place, virtual + work * limit / weight) end
  place = math.max(place, virtual)
  if not t[2] and call('HLEN', TENANTS) > 4096 then
    call('DEL', TENANTS)
    call('HSET', TENANTS, 'v', t[1])
    keep(TENANTS)
  end
  call('HSET', TENANTS, 'f:' .. tenant, padded(place + work))
  return place
end

local operations = {
  A = function(i)
    local id, weight, number = ARGV[i + 1], tonumber(ARGV[i + 3]), ARGV[i + 4]
    -- In a join, also one whose reply was lost.
    if (joins or number ~= '') and call('HEXISTS', HOLDS, self .. ':' .. id) == 1 then return 0, 5 end
    if number ~= '' then
      seq = math.max(seq, tonumber(number))
    elseif nQueue == 0 and fits(weight) then
      hold(self, id, weight)
      return 0, 5
    else
      number = nextNumber()
    end
    enqueue(ARGV[i + 2], number, id, weight, '')
    return number, 5
  end,
  F = function(i)
    local id, weight, number, tenant = ARGV[i + 1], tonumber(ARGV[i + 3]), ARGV[i + 4], ARGV[i + 5]
    local share, cap, guaranteed = tonumber(ARGV[i + 7]), tonumber(ARGV[i + 8]), tonumber(ARGV[i + 9])
    local hasLane = cap > 0 or guaranteed > 0
    if (joins or number ~= '') and call('HEXISTS', HOLDS, self .. ':' .. id) == 1 then return 0, 10 end
    if hasLane then call('HSET', META, 'tc:' .. tenant, cap .. ':' .. guaranteed) end
    if number ~= '' then
      seq = math.max(seq, tonumber(string.sub(number, -16)))
    else
      local place = charge(tenant, weight, tonumber(ARGV[i + 6]), share)
      local isNext = nQueue == 0
      if hasLane then
        local ofTenant = tonumber(call('HGET', META, 'th:' .. tenant)) or 0
        if (nLanes > 0 and firstOf(tenant)) or (cap > 0 and ofTenant + weight > cap) then
          isNext = false
        elseif not isNext and ofTenant < guaranteed then
          isNext = tonumber(call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')[2]) > -2e15
        end
      end
      if isNext and fits(weight) then
        hold(self, id, weight, hasLane and tenant or nil)
        return 0, 10
      end
      number = padded(place) .. nextNumber()
    end
    if hasLane then
      nLanes = nLanes + call('ZADD', LANES, 0, laneEntry(tenant, scoreOf(ARGV[i + 2], number), nameOf(number, id, weight) .. ':' .. tenant))
      if nLanes == 1 then keep(LANES) end
      show(tenant)
    else
      enqueue(ARGV[i + 2], number, id, weight, ':' .. tenant)
    end
    call('HINCRBY', TENANTS, 'n:' .. tenant, 1)
    return number, 10
  end,
  W = function(i)
    local tenant, weight, work = ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]) * 1000
    local share = tonumber(ARGV[i + 4])
    local t = call('HMGET', TENANTS, 'f:' .. tenant, 'm:' .. tenant, 'm')
    if t[1] then
      local mean = tonumber(t[2]) or tonumber(t[3]) or 100000
      local overall = tonumber(t[3]) or work / weight
      call('HSET', TENANTS, 'f:' .. tenant, padded(math.max(0, t[1] + (work - mean * weight) / limit / share)),
        'm:' .. tenant, floor(mean + (work / weight - mean) / 8), 'm', floor(overall + (work / weight - overall) / 64))
    end
    return 0, 5
  end,
  R = function(i)
    return unhold(self, ARGV[i + 1]), 2
  end,
  X = function(i)
    local tenant = match(ARGV[i + 3], ':(.*)')
    local name = nameOf(ARGV[i + 4], ARGV[i + 1], ARGV[i + 3])
    local removed
    if tenant and leaveLane(tenant, laneEntry(tenant, scoreOf(ARGV[i + 2], ARGV[i + 4]), name)) then
      removed = 1
      show(tenant)
    else
      removed = call('ZREM', QUEUE, name)
      nQueue = nQueue - removed
    end
    if tenant and removed == 1 then call('HINCRBY', TENANTS, 'n:' .. tenant, -1) end
    if removed == 0 then removed = unhold(self, ARGV[i + 1]) end
    return removed, 5
  end,
  L = function(i)
    limit, version = tonumber(ARGV[i + 1]), version + 1
    call('HSET', META, 'l', limit, 'v', version)
    call('PUBLISH', channel, 'L ' .. epoch)
    return version, 2
  end,
  Q = function()
    removeMember(self)
    findNextEnd()
    return 1, 1
  end,
  --@operations
}

local results = {}
while ARGV[at] do
  local result, size = operations[ARGV[at]](at)
  results[#results + 1] = result
  at = at + size
end

-- Grants, in the order of the queue.
local virtual
while nQueue > 0 and now >= frozen and (used < limit or used == 0) do
  local waiter = call('ZRANGE', QUEUE, 0, 0)[1]
  local number, owner, id, weight, tenant = match(waiter, '^(%d+):([^:]+):([^:]+):(%d+):?(.*)$')
  weight = tonumber(weight)
  if not fits(weight) then break end
  local lane = nLanes > 0 and tenant ~= '' and firstOf(tenant)
  if lane then
    leaveLane(tenant, lane)
    hold(owner, id, weight, tenant)
    show(tenant)
  else
    call('ZREM', QUEUE, waiter)
    nQueue = nQueue - 1
    hold(owner, id, weight)
  end
  --@granted
  if tenant ~= '' then
    call('HINCRBY', TENANTS, 'n:' .. tenant, -1)
    virtual = string.sub(number, 1, 16)
  end
  if owner == self then
    granted[#granted + 1] = id
  elseif pushes[owner] then
    pushes[owner] = pushes[owner] .. ' ' .. id
  else
    pushes[owner] = id
    pushed[#pushed + 1] = owner
  end
end
if virtual and virtual > (call('HGET', TENANTS, 'v') or '') then call('HSET', TENANTS, 'v', virtual) end
for _, owner in ipairs(pushed) do
  local number = call('HINCRBY', META, 'p:' .. owner, 1)
  call('PUBLISH', channel .. ':' .. owner, 'G ' .. epoch .. ' ' .. call('HGET', META, 'g:' .. owner) .. ' ' .. number .. ' ' .. pushes[owner])
end

if nLeases == 0 and not keeps then
  call('DEL', META, QUEUE, HOLDS, LEASES, TENANTS, LANES)
else
  save()
end

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
return {0, epoch, math.ceil(wake), limit, version, used, nQueue + nLanes - nShown, nLeases, rank, now < frozen and 1 or 0, granted, held, lost, results, extra}
`;
