/**
 * The part of the script of a limit (`script.ts`) that serves tenants: the rules of `FairQueue`, over sorted sets.
 *
 * - A lane for each tenant, `tenant:level:number:member:id:weight`: its waiters by priority, then arrival. Those without a tenant
 *   are in the lane of ''.
 * - The queue has the first waiter of each lane that may be served, by guarantee (the score), and, in the name, by level, work
 *   received and turn.
 * - With aging, of each tenant in the queue the first waiter of each level, by age (`#level:number:…`), and of these the first of
 *   each level, by when it is due (`@:due:level`).
 *
 * Every step is O(log n), but for the first tenant after waiters without one, and a cap that becomes reached or free with
 * aging: O(priorities of the tenant).
 *
 * Its functions are made where there are tenants: those of a script are made each time that it runs.
 */
export const TENANTS_SCRIPT = /* lua */ `
local beginSharing, levelOf, encoded, tenantOf, showChanged, enter, leave, charge, settle, aheadInLanes, nextInLanes, tenantFields

local function useTenants()
  local function padded(number)
    return string.format('%016.0f', number)
  end

  -- Lower levels go first: a level is a priority with the other sign, times agingMs with aging.
  function levelOf(score)
    return tonumber(match(score, '^%+?(.*)$'))
  end

  -- For any safe integer, in their order.
  function encoded(level)
    return level < 0 and '0' .. padded(9007199254740992 + level) or '1' .. padded(level)
  end

  local function decoded(text)
    return tonumber(string.sub(text, 2)) - (string.sub(text, 1, 1) == '0' and 9007199254740992 or 0)
  end

  local function firstOf(group, count)
    return call('ZRANGEBYLEX', LANES, '[' .. group .. ':', '(' .. group .. ';', 'LIMIT', 0, count)
  end

  local function put(entry)
    sharing.entries = sharing.entries + call('ZADD', LANES, 0, entry)
    if sharing.entries == 1 then keep(LANES) end
  end

  local function take(entry)
    local removed = call('ZREM', LANES, entry)
    sharing.entries = sharing.entries - removed
    return removed == 1
  end

  function tenantOf(name)
    local t = tenants[name]
    if t then return t end
    local active = call('HGET', META, 't:' .. name)
    if active then
      t = cmsgpack.unpack(active)
    else
      local idle = call('HGET', TENANTS, name)
      idle = idle and cmsgpack.unpack(idle) or { 0 }
      t = { share = 1, cap = 0, guaranteed = 0, held = 0, waiting = 0, turn = 0, shown = '', posted = false }
      -- Work in microseconds: received, with what is expected of present grants; that part of it; what they have had until "at".
      t.received, t.mean, t.pending, t.running, t.at = idle[1], idle[2], 0, 0, now
    end
    tenants[name] = t
    return t
  end

  local function nextTurn()
    sharing.turns = sharing.turns + 1
    return sharing.turns
  end

  local function advance(t)
    t.running = t.running + t.held * (now - t.at) * 1000
    t.at = now
  end

  local function receivedBy(t)
    if sharing.by ~= 'time' then return t.received end
    advance(t)
    return t.received - t.pending + t.running / t.share
  end

  -- With aging: adds the first waiter of a tenant and priority to those of its priority, or removes it.
  local function post(entry, isAdded)
    local level, number = match(entry, '^[^:]*:(%d+):(%d+):')
    local posted = '#' .. level .. ':' .. number .. ':' .. entry
    if isAdded then put(posted) end
    local first = firstOf('#' .. level, 2)
    if first[1] == posted then
      local function dueEntry(of)
        return '@:' .. encoded(dueOf(match(of, '^#%d+:(%d+)'), decoded(level))) .. ':' .. level
      end
      local before, after = first[2], posted
      if not isAdded then before, after = posted, first[2] end
      -- In this order: waiters of one millisecond have equal entries.
      if before then take(dueEntry(before)) end
      if after then put(dueEntry(after)) end
    end
    if not isAdded then take(posted) end
  end

  -- What a tenant has in the queue, after anything has changed that it depends on.
  local function show(name, t)
    local first, entry = t.waiting > 0 and firstOf(name, 1)[1], ''
    if first then
      local level, waiter, weight = match(first, '^[^:]*:(%d+):%d+:([^:]+:[^:]+:(%d+))$')
      if t.cap == 0 or t.held + tonumber(weight) <= t.cap then
        entry = (t.held < t.guaranteed and '!' or '.') .. level .. string.format('%020.0f', t.received) .. padded(t.turn) .. ':' .. waiter .. ':' .. name
      end
    end
    if entry ~= t.shown then
      if t.shown ~= '' then nQueue = nQueue - call('ZREM', QUEUE, string.sub(t.shown, 2)) end
      if entry ~= '' then
        nQueue = nQueue + call('ZADD', QUEUE, string.sub(entry, 1, 1) == '!' and -1 or 0, string.sub(entry, 2))
        if nQueue == 1 then keep(QUEUE) end
      end
      t.shown = entry
    end
    if (sharing.aged and entry ~= '') ~= t.posted then
      t.posted = not t.posted
      local from = '[' .. name .. ':'
      repeat
        local head = call('ZRANGEBYLEX', LANES, from, '(' .. name .. ';', 'LIMIT', 0, 1)[1]
        if head then
          post(head, t.posted)
          from = '(' .. name .. ':' .. match(head, '^[^:]*:(%d+)') .. ';'
        end
      until not head
    end
  end

  function showChanged()
    local names = unshown
    unshown = {}
    for name, t in pairs(names) do show(name, t) end
  end

  local function levelState(key)
    local levels = sharing.levels
    if not levels or levels[key] then return levels and levels[key] end
    local n = 0
    for _ in pairs(levels) do n = n + 1 end
    -- With more priorities than that in use they are not distinguished until no waiter is left.
    if n == 64 then
      sharing.levels = false
      return false
    end
    levels[key] = { size = 0, tenants = 0, virtual = sharing.virtual }
    return levels[key]
  end

  -- A tenant that begins to wait gets no credit for the time in which it wanted nothing.
  local function resume(t, level, state)
    showChanged()
    local virtual = state and state.virtual or sharing.virtual
    local top, start = call('ZRANGE', QUEUE, 0, 0)[1], virtual
    if top and string.sub(top, 1, 17) == level then start = receivedBy(tenantOf(match(top, '([^:]*)$'))) end
    t.received = math.max(t.received, math.min(virtual, start))
    t.turn = nextTurn()
  end

  function enter(name, level, waiter)
    local t, group = tenantOf(name), name .. ':' .. level
    local entry, state = group .. ':' .. waiter, levelState(level)
    local first = firstOf(group, 1)[1]
    if not first and state then state.tenants = state.tenants + 1 end
    if t.waiting == 0 then resume(t, level, state) end
    put(entry)
    -- One that is queued again after a failure may be older.
    if not first or firstOf(group, 1)[1] == entry then
      if t.posted then
        if first then post(first, false) end
        post(entry, true)
      end
      unshown[name] = t
    end
    if state then state.size = state.size + 1 end
    t.waiting, sharing.waiting = t.waiting + 1, sharing.waiting + 1
  end

  function leave(name, level, waiter)
    local group = name .. ':' .. level
    local entry = group .. ':' .. waiter
    local t, state = tenantOf(name), sharing.levels and sharing.levels[level]
    local wasFirst = t.posted and firstOf(group, 1)[1] == entry
    if not take(entry) then return false end
    t.waiting, sharing.waiting = t.waiting - 1, sharing.waiting - 1
    local first = t.waiting > 0 and firstOf(group, 1)[1]
    if wasFirst then
      post(entry, false)
      if first then post(first, true) end
    end
    if state then
      state.size = state.size - 1
      if not first then state.tenants = state.tenants - 1 end
      if state.tenants == 0 then sharing.levels[level] = nil end
    end
    if sharing.waiting == 0 then sharing.levels = {} end
    unshown[name] = t
    return true
  end

  -- From the first tenant on: what waits already has none.
  function beginSharing(by, aged)
    sharing = { by = by, aged = aged, virtual = 0, turns = 0, waiting = 0, entries = 0, levels = {} }
    local waiters = nQueue > 0 and call('ZRANGE', QUEUE, 0, -1, 'WITHSCORES') or {}
    call('DEL', QUEUE)
    nQueue = 0
    for i = 1, #waiters, 2 do
      local arrival = aged and dueOf(match(waiters[i], '^%d+'), 0) or 0
      enter('', encoded(tonumber(waiters[i + 1]) - arrival), waiters[i])
    end
  end

  local function costOf(t, weight)
    if sharing.by == 'requests' then return 1e6 / t.share end
    if sharing.by == 'weight' then return 1e6 * weight / t.share end
    return (t.mean or sharing.mean or 0) * weight / t.share
  end

  -- Counts a permit as its tenant's. By time the charge is an estimate, which the release corrects.
  function charge(name, weight, isClaim)
    local t = tenantOf(name)
    local cost, value = 0, weight .. ':' .. name
    advance(t)
    if not isClaim then
      cost = costOf(t, weight)
      sharing.virtual = receivedBy(t)
      t.received, t.turn = t.received + cost, nextTurn()
    end
    t.held = t.held + weight
    if t.waiting > 0 then unshown[name] = t end
    if sharing.by ~= 'time' then return value end
    t.pending = t.pending + cost
    return string.format('%s:%.17g:%.0f', value, cost, now)
  end

  local function smoothed(mean, value)
    return mean and mean + (value - mean) / 5 or value
  end

  -- The permit of a tenant has ended. By time, how long one was held that was not used counts, but says nothing about the next.
  function settle(name, weight, charged, grantedMs, isUnused)
    local t = tenantOf(name)
    advance(t)
    t.held = t.held - weight
    if charged ~= '' then
      local heldUs = (now - tonumber(grantedMs)) * 1000
      t.received = math.max(0, t.received + heldUs * weight / t.share - tonumber(charged))
      t.pending, t.running = t.pending - tonumber(charged), t.running - heldUs * weight
      if not isUnused then t.mean, sharing.mean = smoothed(t.mean, heldUs), smoothed(sharing.mean, heldUs) end
    elseif isUnused then
      t.received = math.max(0, t.received - costOf(t, weight))
    end
    if t.held == 0 then t.pending, t.running = 0, 0 end
    if t.waiting > 0 then unshown[name] = t end
  end

  -- How many are ahead of a waiter, as if each other tenant had a turn before each of its own: considers neither aging nor caps and
  -- guarantees.
  function aheadInLanes(name, score, waiter)
    local level = encoded(levelOf(score))
    local group = name .. ':' .. level
    if not call('ZSCORE', LANES, group .. ':' .. waiter) then return false end
    if not sharing.levels then return sharing.waiting - 1 end
    local own = call('ZLEXCOUNT', LANES, '[' .. group .. ':', '(' .. group .. ':' .. waiter)
    local state, top = sharing.levels[level], call('ZRANGE', QUEUE, 0, 0)[1]
    local isFirst = own == 0 and top and match(top, '([^:]*)$') == name
    local ahead = isFirst and 0 or math.min(state.size - 1, own + (own + 1) * (state.tenants - 1))
    for other, of in pairs(sharing.levels) do
      if decoded(other) < decoded(level) then ahead = ahead + of.size end
    end
    return ahead
  end

  -- The lane entry of the next waiter: with aging, one of another priority may be due before.
  function nextInLanes()
    local first = call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')
    local entry = firstOf(match(first[1], '([^:]*)$'), 1)[1]
    if sharing.aged and tonumber(first[2]) == 0 then
      local level, number = match(entry, '^[^:]*:(%d+):(%d+):')
      for _, due in ipairs(firstOf('@', 2)) do
        local dueMs, other = match(due, '^@:(%d+):(%d+)$')
        if other ~= level then
          if decoded(dueMs) > dueOf(number, decoded(level)) then break end
          for _, posted in ipairs(firstOf('#' .. other, 8)) do
            local from, aged, name, weight = match(posted, '^#%d+:(%d+):(([^:]*):.*:(%d+))$')
            local t = tenantOf(name)
            -- One that is heavier than the first of its tenant may have no room under the cap.
            if t.cap == 0 or t.held + tonumber(weight) <= t.cap then
              if dueOf(from, decoded(other)) <= dueOf(number, decoded(level)) then return aged end
              break
            end
          end
          break
        end
      end
    end
    return entry
  end

  -- What is stored of the tenants that this script has read.
  function tenantFields()
    showChanged()
    local fields = { 'ts', cmsgpack.pack(sharing) }
    for name, t in pairs(tenants) do
      if t.held > 0 or t.waiting > 0 then
        -- Lua unpacks no more than 8,000 values.
        if #fields == 4000 then
          call('HSET', META, unpack(fields))
          fields = {}
        end
        fields[#fields + 1] = 't:' .. name
        fields[#fields + 1] = cmsgpack.pack(t)
      else
        call('HDEL', META, 't:' .. name)
        if call('HSET', TENANTS, name, cmsgpack.pack({ t.received, t.mean })) == 1 then
          local remembered = call('HLEN', TENANTS)
          if remembered > 4096 then call('DEL', TENANTS) end
          if remembered == 1 then keep(TENANTS) end
        end
      end
    end
    return fields
  end
end

if sharing then useTenants() end
`;
