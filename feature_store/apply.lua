-- Add a batch to the features and move the positions past it, or do nothing at all.
--
-- KEYS[1]    {ns:p}:meta                       compared, then sequence, positions, newest event times, ids written
-- KEYS[2]    {ns:p}:INC:items                  written
-- KEYS[3]    {ns:p}:INC:products               written
-- KEYS[4..]  {ns:p}:INC:dirty:FREQ             written, a.dirty_freqs keys
-- KEYS[..]   {ns:p}:INC:ids:SOURCE:GENERATION  read, written or dropped, a.ids_keys keys
-- KEYS[..]   {ns:p}:INC:sums:SERIES            read and written, one for each entry of a.counts
-- KEYS[..]   {ns:p}:INC:changed                written, when ARGV[2] says that it is given: while the partition is
--                                              being copied (copy.lua), names of what was written: s and the series'
--                                              key, i and the item, p and the product, d and the item marked, e, key
--                                              of the ids, space, id
-- ARGV[1]    MessagePack: owner, incarnation, positions {{topic, expected or -1, next}}, newest {{source, ms}},
--            items and products {field, value, …}, dirty {item_id}, dirty_freqs (count)
--            counts {fields of each series}, fields {chunk}, rows {text to add}, large {position in fields}: chunks.py
--            oldest {letter of the freq = {oldest chunk kept of each series}}
--            widths {letter of the source = features}, most_bytes and most_rows {letters = when rows are added up}
--            max_exact, large_from
--            ids {{source, {ids}, {keys to look into}, key to write or 0}}, ids_kept {source, text, …}, ids_gone {key}
--            (keys are counted from the first of the ids_keys)
-- Returns    {'OK', sequence} | {'APPLIED', sequence}: this very batch was applied before, its reply was lost
--            and a third value, 1, when the partition is being copied
--            {'HELD'}: try again in a moment | {'COPIED'}: try again, with the last key | {'FENCED'}: another owner
--            {'BEHIND'}: meta lost, or a position that is not the expected one
--            {'DUPLICATES', source, {id, …}, …}: counted before | {'OVERFLOW', key}: a sum would no longer be exact
-- Lua does not roll back: everything is read and checked before the first write.
local a = cmsgpack.unpack(ARGV[1])
local call = redis.call
local byte, format, gmatch, gsub, match, rep, sub =
  string.byte, string.format, string.gmatch, string.gsub, string.match, string.rep, string.sub
local concat, min = table.concat, math.min
local PART = 1000 -- how many values one command is given: unpack() has its limit

local meta = KEYS[1]
local stored = call('HMGET', meta, 'owner', 'incarnation', 'sequence', 'copy_until', 'held_until')
if not stored[1] or stored[2] ~= a.incarnation then return {'BEHIND'} end
if stored[1] ~= a.owner then return {'FENCED'} end
local is_copied = false
if stored[4] then
  local time = call('TIME')
  local now = time[1] * 1000 + time[2] / 1000
  if tonumber(stored[5] or '0') > now then return {'HELD'} end
  is_copied = tonumber(stored[4]) > now
  if is_copied and ARGV[2] ~= '1' then return {'COPIED'} end
end

local as_expected, as_next = true, true
for _, p in ipairs(a.positions) do
  local position = tonumber(call('HGET', meta, 'position:' .. p[1]) or '-1')
  if position ~= p[2] then as_expected = false end
  if position ~= p[3] then as_next = false end
end
if not as_expected then
  if as_next then return {'APPLIED', stored[3]} end
  return {'BEHIND'}
end

-- Duplicates.
local first_ids = 3 + a.dirty_freqs
local duplicates = {'DUPLICATES'}
for _, entry in ipairs(a.ids) do
  local ids, found = entry[2], {}
  for _, key in ipairs(entry[3]) do
    for from = 1, #ids, PART do
      local known = call('SMISMEMBER', KEYS[first_ids + key], unpack(ids, from, min(from + PART - 1, #ids)))
      for i = 1, #known do
        if known[i] == 1 then found[#found + 1] = ids[from + i - 1] end
      end
    end
  end
  if #found > 0 then
    duplicates[#duplicates + 1] = entry[1]
    duplicates[#duplicates + 1] = found
  end
end
if #duplicates > 1 then return duplicates end

-- Sums. `merge` gives a chunk's new text, or nil where a sum would no longer be exact.
local LARGE, EXACT = a.large_from, a.max_exact
local width_of, values_of = {}, {} -- by the byte of a source's letter
for letter, width in pairs(a.widths) do
  local source = byte(letter)
  width_of[source] = width
  values_of[source] = '^%+?%d+:' .. rep('(-?%d+k?),', width - 1) .. '(-?%d+k?);()'
end
local large = {}
for _, n in ipairs(a.large) do large[n + 1] = true end

-- "12k" is 12000. Few numbers differ within a batch, and a look-up is quicker than reading digits.
local known = {}
local function number(text)
  local n = known[text]
  if not n then
    n = tonumber(text) or tonumber(sub(text, 1, -2)) * 1000
    known[text] = n
  end
  return n
end

local function digits(n)
  if n % 1000 == 0 and n ~= 0 then return format('%.0fk', n / 1000) end
  return format('%.0f', n)
end

local function add_up(text, source)
  local width, sums, places, is_large = width_of[source], {}, {}, false
  for place, values in gmatch(text, '(%d+):([^;]*);') do
    local sum = sums[place]
    if not sum then
      sum = {}
      for c = 1, width do sum[c] = 0 end
      sums[place] = sum
      places[#places + 1] = place
    end
    local c = 0
    for value in gmatch(values, '[^,]+') do
      c = c + 1
      sum[c] = sum[c] + number(value)
      if sum[c] >= EXACT or sum[c] <= -EXACT then return nil end
    end
  end
  table.sort(places, function(x, y) return tonumber(x) < tonumber(y) end)
  for i, place in ipairs(places) do
    local sum = sums[place]
    for c = 1, width do
      is_large = is_large or sum[c] >= LARGE or sum[c] <= -LARGE
      sum[c] = digits(sum[c])
    end
    places[i] = place .. ':' .. concat(sum, ',') .. ';'
  end
  return (is_large and '+' or '') .. concat(places)
end

local function merge(old, new, field, is_large)
  local source = byte(field, 2)
  if is_large or (old and byte(old) == 43) then return add_up((old or '') .. new, source) end
  if not old then return new end
  -- The last row is looked for in the last 80 characters: it has a place and at most four numbers below LARGE.
  local at, place = match(old, '^.*;()(%d+)', -80)
  if not at then at, place = 1, match(old, '^%d+') end
  local first = match(new, '^%d+')
  if place == first then
    local pattern, width = values_of[source], width_of[source]
    local was, is = {match(old, pattern, at)}, {match(new, pattern)}
    for c = 1, width do
      if is[c] ~= '0' then
        local sum = number(was[c]) + number(is[c])
        if sum >= LARGE or sum <= -LARGE then return add_up(old .. new, source) end
        was[c] = digits(sum)
      end
    end
    local row = place .. ':' .. concat(was, ',', 1, width) .. ';'
    return sub(old, 1, at - 1) .. row .. sub(new, is[width + 1])
  end
  local text = old .. new
  if tonumber(first) < tonumber(place) then
    local letters = sub(field, 1, 2)
    if #text > a.most_bytes[letters] and select(2, gsub(text, ';', '')) > a.most_rows[letters] then
      return add_up(text, source)
    end
  end
  return text
end

local function hmget(key, fields, from, to)
  if to - from < PART then return call('HMGET', key, unpack(fields, from, to)) end
  local out = {}
  for start = from, to, PART do
    local part = call('HMGET', key, unpack(fields, start, min(start + PART - 1, to)))
    for i = 1, #part do out[start - from + i] = part[i] end
  end
  return out
end

-- Chunks whose every bucket has left the retention.
local function gone_chunks(key, i)
  local gone = {}
  for _, field in ipairs(call('HKEYS', key)) do
    local oldest = a.oldest[sub(field, 1, 1)]
    if oldest and tonumber(sub(field, 3)) < oldest[i] then gone[#gone + 1] = field end
  end
  return gone
end

local first_sums = first_ids + a.ids_keys
local fields, rows, counts = a.fields, a.rows, a.counts
local writes, gone = {}, {}
local from = 1
for i = 1, #counts do
  local key, to = KEYS[first_sums + i], from + counts[i] - 1
  local old, changed, n, is_new = hmget(key, fields, from, to), {}, 0, false
  for j = from, to do
    local field, was = fields[j], old[j - from + 1]
    local text = merge(was, rows[j], field, large[j])
    if not text then return {'OVERFLOW', key} end
    is_new = is_new or not was
    changed[n + 1], changed[n + 2], n = field, text, n + 2
  end
  writes[i] = changed
  if is_new then gone[i] = gone_chunks(key, i) end
  from = to + 1
end

-- Writes.
local function write(command, key, values)
  local count = #values
  if count > 0 and count <= PART then return call(command, key, unpack(values)) end
  for start = 1, count, PART do
    call(command, key, unpack(values, start, min(start + PART - 1, count)))
  end
end

local sequence = format('%.0f', tonumber(stored[3]) + 1)
for i = 1, #writes do
  local key = KEYS[first_sums + i]
  write('HSET', key, writes[i])
  if gone[i] then write('HDEL', key, gone[i]) end
end
write('HSET', KEYS[2], a.items)
write('HSET', KEYS[3], a.products)
local marks = {}
for _, item in ipairs(a.dirty) do
  marks[#marks + 1] = item
  marks[#marks + 1] = sequence
end
for i = 1, a.dirty_freqs do write('HSET', KEYS[3 + i], marks) end
for _, entry in ipairs(a.ids) do
  if entry[4] > 0 then write('SADD', KEYS[first_ids + entry[4]], entry[2]) end
end
for _, key in ipairs(a.ids_gone) do call('UNLINK', KEYS[first_ids + key]) end
local about = {'sequence', sequence}
for _, p in ipairs(a.positions) do
  about[#about + 1] = 'position:' .. p[1]
  about[#about + 1] = format('%.0f', p[3])
end
for _, n in ipairs(a.newest) do
  about[#about + 1] = 'newest:' .. n[1]
  about[#about + 1] = format('%.0f', n[2])
end
for i = 1, #a.ids_kept, 2 do
  about[#about + 1] = 'ids:' .. a.ids_kept[i]
  about[#about + 1] = a.ids_kept[i + 1]
end
write('HSET', meta, about)
if not is_copied then return {'OK', sequence} end

local changed = {}
local function note(letter, names, step)
  for i = 1, #names, step do changed[#changed + 1] = letter .. names[i] end
end
for i = 1, #writes do changed[i] = 's' .. KEYS[first_sums + i] end
note('i', a.items, 2)
note('p', a.products, 2)
note('d', a.dirty, 1)
for _, entry in ipairs(a.ids) do
  if entry[4] > 0 then note('e' .. KEYS[first_ids + entry[4]] .. ' ', entry[2], 1) end
end
write('SADD', KEYS[#KEYS], changed)
call('PEXPIREAT', KEYS[#KEYS], stored[4])
return {'OK', sequence, 1}
