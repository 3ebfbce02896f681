// Everything that is said on the operator's page, in Russian and in English; and how figures are written.

import { language, switchLanguage } from "./words.js";

const RU = {
  title: "Вестник", page: "Оператор", skip: "К содержанию", language: "English", leave: "Выйти", nav: "Разделы страницы оператора",
  overview: "Обзор", agencies: "Ведомства", nodes: "Узлы", rejected: "Отказы", alerts: "Тревоги", account: "Поиск",
  signIn: "Вход", signInText: "Возьмите пример или вставьте токен с правом", signInToken: "Вставьте токен с правом", signInMade: "Его печатает команда", sample: "Оператор из примера", token: "Токен", enter: "Войти",
  tokenEmpty: "Вставьте токен: строку из трёх частей через точку.", tokenWrong: "Это не токен: в нём должно быть три части через точку.",
  live: "На связи", connecting: "Подключаемся", "catching-up": "Получаем пропущенное", waiting: "Связи нет", offline: "Нет сети", stopped: "Связь закрыта",
  waitingText: "Показатели остановились: вы видите последние полученные. Страница подключится сама.", again: (s) => `Следующая попытка через ${s} с.`, retry: "Подключиться сейчас",
  loading: "Загружаем показатели…",
  away: ["Шлюз не отвечает", "Показателей ещё нет. Страница подключится сама, как только шлюз ответит."],
  refused: ["Токен не принят", "Он неверный, его срок закончился или его отозвали. Войдите с новым."],
  unscoped: ["Нужны права оператора", "Токен хороший, но права ops в нём нет. Попросите токен с ним там, где вы получили этот."],
  failed: (status) => ["Шлюз не смог ответить", `Он ответил ${status}. Страница попробует ещё раз сама.`],
  4409: ["Страница открыта в другом месте", "Эта же вкладка подключилась ещё раз. Продолжить можно здесь."],
  4403: ["Вход не разрешён", "У этого оператора уже десять подключений. Закройте другие вкладки и попробуйте снова."],
  4426: ["Страница устарела", "Загрузите её заново, чтобы получить новую версию."],
  closed: ["Связь закрыта", "Шлюз попросил не подключаться снова. Загрузите страницу заново или войдите ещё раз."],
  signInAgain: "Войти заново", here: "Продолжить здесь", reload: "Загрузить заново",
  noFigures: ["Показателей пока нет", "Первые придут через несколько секунд. Если их нет и через минуту, показатели выключены: VESTNIK_OPS_S=0. Отказы, тревоги и поиск работают и без них."],
  window: "Период", minutes: (n) => `${n} мин`,
  now: "сейчас", ago: (text) => `${text} назад`, never: "ещё не было", none: "нет",
  more: "Показать ещё", any: "Все", found: (n) => `Найдено: ${n}`,
  // Overview
  sessions: "Сеансы", connects: "Подключения", intake: "Принято событий", deliveries: "Доставки", urgentWritten: "Срочные доставлены за", behind: "Отстают", refusals: "Отказы ведомствам", level: "Уровень сервиса",
  onNodes: (n) => `на узлах: ${n}`, perSecond: "/с", behindText: (n) => `забиты: ${n}`, refusalsText: "за период", levelText: "событий за 5 минут; цель 95 %", closedText: (n) => `закрыто ${n}/с`, duplicatesText: (n) => `повторов ${n}/с`, replayedText: (n) => `из истории ${n}/с`, urgentText: (text) => `99 %; подтверждены за ${text}`,
  latency: "Задержка доставки", latencyNote: "От записи события на диск; шкала логарифмическая.", upTo: "До", toSocket: "записи в сокет", toAck: "подтверждения устройством", percentile: "Процентиль", half: "50 %", most: "95 %", nearlyAll: "99 %",
  priority: "Приоритет", count: "Доставок", priorities: { urgent: "Срочные", high: "Важные", normal: "Обычные", bulk: "Массовые" },
  latencyTable: "Задержка за период по приоритетам",
  perPriority: "Доставки в секунду", opened: "Открыто", closedRate: "Закрыто", refusedHandshakes: "Отказано", connectsChart: "Подключения в секунду",
  accepted: "Принято", rejectedRate: "Отклонено", duplicates: "Повторы", intakeChart: "Приём событий в секунду",
  catchUp: "Догоняют", catchUpNote: "Сеансы, у которых какая-то лента ниже головы.", behindNow: "Отстают", stalledNow: "Забиты",
  replay: "Из истории в секунду", replayed: "Из истории", swept: "Нашла сверка", relayed: "Дослано шине",
  commit: "Запись на диск", commitNote: "Одна группа событий, с fsync.", loop: "Задержка цикла", loopNote: "Насколько позже срока просыпается процесс.", p50: "50 %", p99: "99 %",
  sessionsChart: "Открытые сеансы",
  slow: "Медленные сеансы", slowText: "Окно или сокет заняты: такие сеансы ничего не теряют, через 60 с они закрываются и догоняют.", noSlow: "Медленных сеансов сейчас нет.",
  who: "Кто", device: "Устройство", stuckFor: "Стоит", eventsBehind: "Отстаёт на", why: "Что занято", node: "Узел", window_: "окно", socket: "сокет", session: "Сеанс",
  health: "Хранилище и шина", store: "Хранилище", bus: "Шина", readyOn: (n, all) => `готово на ${n} из ${all}`, healthyOn: (n, all) => `здорова на ${n} из ${all}`,
  failures: "Ошибок за период", disk: "Свободно на диске", gaps: "Обрывов", holes: "Пропусков", diskElsewhere: "хранилище не на этих дисках", ofSize: (free, size) => `${free} из ${size}`,
  ends: "Почему закрывались", handshakes: "Отказы в подключении", resyncs: "Пересинхронизации", totals: "За период",
  codes: {
    0: "без кода", 1000: "закрыло устройство", 1001: "устройство ушло", 1005: "без кода", 1006: "связь оборвалась", 1009: "слишком большое", 1011: "внутренняя ошибка", 4400: "неверное сообщение", 4401: "токен закончился", 4403: "нет права", 4409: "новый сеанс того же устройства",
    4410: "отозвано", 4426: "старая версия", 4503: "перегрузка", 4508: "слишком медленно", 4512: "узел уходит", 4529: "слишком часто",
  },
  // Agencies
  agency: "Ведомство", lastEvent: "Последнее событие", rate: "В минуту", acceptedCount: "Принято", refusedCount: "Отклонено", delay: "Задержка 95 %", state: "Состояние", trend: "Ход",
  agenciesText: (minutes) => `За ${minutes} мин. Уровень сервиса: доля событий, записанных не позже 5 минут после того, о чём они говорят; цель 95 %.`, agenciesOmitted: (n) => `Ещё ${n} ведомств, у которых меньше всего событий, не поместились в показатели.`, findAgency: "Найти ведомство", noAgencies: ["Ведомств нет", "Добавьте первое командой vestnik agency add КОД."], noAgencyFound: ["Такого ведомства нет", "Измените или очистите поиск."],
  good: "в порядке", quiet: "молчит", late: "опаздывает", refuses: "есть отказы", fresh: "событий не было", problems: "Только с отклонениями",
  // Nodes
  nodesText: "Узел, который перестал присылать показатели, остаётся здесь до конца периода.", cpu: "Процессор", memory: "Память", files: "Файлы", lag: "Цикл 99 %", deliveredRate: "Доставок/с", openedRate: "Подкл./с",
  up: "работает", draining: "уходит", silentFor: (text) => `молчит ${text}`, storeAway: "нет хранилища", busAway: "нет шины",
  workers: "Роли", workersText: "Каждую работу делает один процесс: узел или vestnik worker; когда он уходит, её берёт другой.", role: "Роль", owner: "Процесс", lease: "Аренда", leaseLeft: (text) => `ещё ${text}`, leaseIdle: (text) => `шаг сделан ${text} назад`, noWorkers: "Ролей пока никто не взял.",
  roles: { relay: "досылка шине", retention: "срок хранения", tidy: "уборка", alerts: "тревоги", webhook: "вебхук тревог" },
  // Rejected
  rejectedText: "Каждый отказ ведомству с причиной. Тела событий и счета граждан сюда не попадают.", reason: "Причина", time: "Время", event: "Событие", detail: "Что не так", size: "Размер", unknownAgency: "неизвестно", omitted: (n) => `и ещё ${n}, не показанных`, noRejected: ["Отказов нет", "Как только шлюз что-то отклонит, это появится здесь с причиной."], noSuchRejected: ["Таких отказов нет", "Измените условия или сбросьте их."], reset: "Сбросить",
  reasons: {
    unsigned: "нет подписи", malformed: "не JSON", forbidden: "не своё", conflict: "тот же id", stale: "устарело", "too-large": "слишком большое", "media-type": "не тот тип", invalid: "неверные данные", quota: "сверх квоты", unavailable: "не записать", "not-found": "нет адреса",
  },
  // Alerts
  firingNow: "Активные", alertHistory: "История", noAlerts: ["Тревог ещё не было", "Правила проверяются всё время; сработавшее появится здесь и наверху обзора."], nothingFires: "Сейчас ничего не сработало.", since: "С", value: "Значение", bound: "Граница", rule: "Правило", severity: "Важность", critical: "критично", warning: "внимание", resolved: "закончилась", fires: "сработала", lasted: (text) => `длилась ${text}`,
  bounded: (value, bound) => `${value}, граница ${bound}`, moreAlerts: (n) => `Ещё тревог: ${n}`,
  // Account
  accountTitle: "Путь одного события", accountText: "Каждый просмотр записывается в ленту ops:audit: кто смотрел, какой счёт и когда. Данные событий не показываются.", accountId: "Идентификатор счёта", find: "Найти", idWrong: "Идентификатор: от 1 до 64 знаков из A–Z, a–z, 0–9, точки, _ и -.", searching: "Ищем…", another: "Исправить идентификатор",
  unknown: (id) => [`Счёт ${id} неизвестен`, "У него нет ни событий, ни устройств. Проверьте идентификатор; большие и малые буквы различаются."], searchFailed: ["Не удалось найти", "Шлюз не ответил. Попробуйте ещё раз."],
  feedLine: (oldest, head) => (head ? `События с ${oldest} по ${head}` : "Событий нет"), devices: "Устройства", noDevices: "Устройств нет: события ждут первого входа.", events: "События", noEvents: "Событий нет.", connected: "на связи", notConnected: "не на связи", lastSeen: "Был на связи", created: "Подключено", epoch: "эпоха", upToDate: "всё получено", behindBy: (n) => `осталось ${n}`,
  offset: "№", type: "Тип", source: "Источник", recorded: "Записано", delivered: "Доставлено", seen: "Показано", erased: "удалено", open: "Путь", openOf: (n) => `Путь события ${n}`, back: "Ко всем событиям", way: (n) => `Путь события № ${n}`, whole: (text) => `Всего ${text}`, stageUnknown: "сделано, время не сохранилось", modes: { full: "все события сразу", saver: "экономия трафика" }, stageWaits: "ещё нет", unknownEvent: (n) => [`События ${n} нет`, "Его ещё не было, или срок хранения прошёл."],
  stages: { created: "Произошло в ведомстве", signed: "Подписано ведомством", verified: "Подпись проверена", committed: "Записано на диск", published: "Отдано шине", written: "Записано в сокет", delivered: "Подтверждено устройством", seen: "Показано человеку" },
  deviceStates: { acknowledged: "подтвердило", written: "отправлено, ждём подтверждения", waiting: "ждёт очереди", away: "не на связи" },
  audits: "Кто смотрел", noAudits: "Никто ещё ничего не смотрел.", actions: { account: "счёт", event: "событие" }, operator: "Оператор", what: "Что", from: "Откуда",
  milliseconds: "мс", seconds: "с", minute: "мин", hour: "ч", day: "дн", bytes: ["Б", "КБ", "МБ", "ГБ", "ТБ"],
};

const EN = {
  title: "Vestnik", page: "Operator", skip: "Skip to content", language: "Русский", leave: "Sign out", nav: "Parts of the operator's page",
  overview: "Overview", agencies: "Agencies", nodes: "Nodes", rejected: "Rejects", alerts: "Alerts", account: "Search",
  signIn: "Sign in", signInText: "Take the sample, or paste a token with the scope", signInToken: "Paste a token with the scope", signInMade: "It is printed by", sample: "Sample operator", token: "Token", enter: "Sign in",
  tokenEmpty: "Paste a token: a line of three parts with dots between them.", tokenWrong: "This is no token: it must have three parts with dots between them.",
  live: "Connected", connecting: "Connecting", "catching-up": "Receiving what was missed", waiting: "No connection", offline: "Offline", stopped: "Disconnected",
  waitingText: "The figures stand still: you see the last ones that came. The page will connect by itself.", again: (s) => `Next try in ${s} s.`, retry: "Connect now",
  loading: "Loading the figures…",
  away: ["The gateway does not answer", "There are no figures yet. The page will connect by itself as soon as the gateway answers."],
  refused: ["The token was refused", "It is wrong, has ended or was revoked. Sign in with a new one."],
  unscoped: ["Operators only", "The token is good, but it does not have the scope ops. Ask for one that has it where you got this one."],
  failed: (status) => ["The gateway could not answer", `It answered ${status}. The page will try again by itself.`],
  4409: ["The page is open elsewhere", "This same tab connected once more. You can continue here."],
  4403: ["Sign-in is not allowed", "This operator has ten connections already. Close other tabs and try again."],
  4426: ["This page is out of date", "Load it again to get the new version."],
  closed: ["Disconnected", "The gateway asked not to connect again. Load the page again, or sign in again."],
  signInAgain: "Sign in again", here: "Continue here", reload: "Load again",
  noFigures: ["No figures yet", "The first ones come in a few seconds. If there are none after a minute, they are switched off: VESTNIK_OPS_S=0. Rejects, alerts and the search work without them."],
  window: "Period", minutes: (n) => `${n} min`,
  now: "now", ago: (text) => `${text} ago`, never: "not yet", none: "none",
  more: "Show more", any: "All", found: (n) => `Found: ${n}`,
  sessions: "Sessions", connects: "Connects", intake: "Events accepted", deliveries: "Deliveries", urgentWritten: "Urgent delivered within", behind: "Behind", refusals: "Rejects to agencies", level: "Service level",
  onNodes: (n) => `on ${n} node${n === 1 ? "" : "s"}`, perSecond: "/s", behindText: (n) => `stalled: ${n}`, refusalsText: "in this period", levelText: "of events within 5 minutes; target 95 %", closedText: (n) => `closed ${n}/s`, duplicatesText: (n) => `duplicates ${n}/s`, replayedText: (n) => `replayed ${n}/s`, urgentText: (text) => `99 %; acknowledged within ${text}`,
  latency: "Delivery latency", latencyNote: "From the commit of the event; logarithmic scale.", upTo: "Until", toSocket: "written to the socket", toAck: "acknowledged by the device", percentile: "Percentile", half: "50 %", most: "95 %", nearlyAll: "99 %",
  priority: "Priority", count: "Deliveries", priorities: { urgent: "Urgent", high: "High", normal: "Normal", bulk: "Bulk" },
  latencyTable: "Latency in this period by priority",
  perPriority: "Deliveries per second", opened: "Opened", closedRate: "Closed", refusedHandshakes: "Refused", connectsChart: "Connects per second",
  accepted: "Accepted", rejectedRate: "Rejected", duplicates: "Duplicates", intakeChart: "Intake, events per second",
  catchUp: "Catching up", catchUpNote: "Sessions that have a feed below its head.", behindNow: "Behind", stalledNow: "Stalled",
  replay: "Replay per second", replayed: "Replayed", swept: "Found by the sweep", relayed: "Relayed",
  commit: "Commit", commitNote: "One group of events, fsync included.", loop: "Loop lag", loopNote: "How much later than due the process wakes up.", p50: "50 %", p99: "99 %",
  sessionsChart: "Open sessions",
  slow: "Slow sessions", slowText: "Their window or socket is full: they lose nothing; after 60 s they are closed, and catch up.", noSlow: "No session is slow now.",
  who: "Who", device: "Device", stuckFor: "Stalled", eventsBehind: "Behind by", why: "Full", node: "Node", window_: "window", socket: "socket", session: "Session",
  health: "Store and bus", store: "Store", bus: "Bus", readyOn: (n, all) => `ready on ${n} of ${all}`, healthyOn: (n, all) => `healthy on ${n} of ${all}`,
  failures: "Failures in this period", disk: "Free on disk", gaps: "Gaps", holes: "Holes", diskElsewhere: "the store is not on these disks", ofSize: (free, size) => `${free} of ${size}`,
  ends: "Why sessions closed", handshakes: "Refused connects", resyncs: "Resyncs", totals: "In this period",
  codes: {
    0: "no code", 1000: "closed by the device", 1001: "the device went away", 1005: "no code", 1006: "connection lost", 1009: "too large", 1011: "internal error", 4400: "bad message", 4401: "token ended", 4403: "forbidden", 4409: "a newer session of the device",
    4410: "revoked", 4426: "old version", 4503: "overloaded", 4508: "too slow", 4512: "node going away", 4529: "too many messages",
  },
  agency: "Agency", lastEvent: "Last event", rate: "Per minute", acceptedCount: "Accepted", refusedCount: "Rejected", delay: "Delay 95 %", state: "State", trend: "Trend",
  agenciesText: (minutes) => `The last ${minutes} min. Service level: the share of events committed within 5 minutes of what they tell about; target 95 %.`, agenciesOmitted: (n) => `${n} more agencies, those with the fewest events, did not fit into the figures.`, findAgency: "Find an agency", noAgencies: ["No agencies", "Add the first one with vestnik agency add CODE."], noAgencyFound: ["No such agency", "Change or clear the search."],
  good: "all well", quiet: "silent", late: "late", refuses: "rejects", fresh: "no events yet", problems: "Only those with problems",
  nodesText: "A node that sends no figures any more stays here to the end of the period.", cpu: "CPU", memory: "Memory", files: "Files", lag: "Loop 99 %", deliveredRate: "Deliveries/s", openedRate: "Connects/s",
  up: "up", draining: "going away", silentFor: (text) => `silent for ${text}`, storeAway: "store away", busAway: "bus away",
  workers: "Workers", workersText: "One process does each job, a node or a vestnik worker; when it goes away, another takes it over.", role: "Role", owner: "Process", lease: "Lease", leaseLeft: (text) => `${text} left`, leaseIdle: (text) => `a step was done ${text} ago`, noWorkers: "Nobody has taken a role yet.",
  roles: { relay: "publishes what was not", retention: "removes what is too old", tidy: "tidies up", alerts: "watches the figures", webhook: "sends alerts out" },
  rejectedText: "Each refusal with its reason. No bodies of events and no accounts come here.", reason: "Reason", time: "Time", event: "Event", detail: "What is wrong", size: "Size", unknownAgency: "unknown", omitted: (n) => `and ${n} more, not shown`, noRejected: ["No rejects", "Whatever the gateway refuses will appear here with the reason."], noSuchRejected: ["No such rejects", "Change the conditions, or reset them."], reset: "Reset",
  reasons: {
    unsigned: "not signed", malformed: "no JSON", forbidden: "not its own", conflict: "same id", stale: "stale", "too-large": "too large", "media-type": "media type", invalid: "invalid data", quota: "over quota", unavailable: "cannot commit", "not-found": "no such address",
  },
  firingNow: "Firing", alertHistory: "History", noAlerts: ["No alerts yet", "The rules are checked all the time; what fires appears here and on top of the overview."], nothingFires: "Nothing fires now.", since: "Since", value: "Value", bound: "Bound", rule: "Rule", severity: "Severity", critical: "critical", warning: "warning", resolved: "resolved", fires: "fired", lasted: (text) => `lasted ${text}`,
  bounded: (value, bound) => `${value}, bound ${bound}`, moreAlerts: (n) => `${n} more`,
  accountTitle: "The way of one event", accountText: "Each look is recorded in the feed ops:audit: who looked, at which account, and when. The data of events are not shown.", accountId: "Id of the account", find: "Find", idWrong: "An id is 1 to 64 of A–Z, a–z, 0–9, dot, _ and -.", searching: "Searching…", another: "Change the id",
  unknown: (id) => [`Account ${id} is unknown`, "It has neither events nor devices. Check the id; capital and small letters differ."], searchFailed: ["The search failed", "The gateway did not answer. Please try again."],
  feedLine: (oldest, head) => (head ? `Events ${oldest} to ${head}` : "No events"), devices: "Devices", noDevices: "No devices: events wait for the first sign-in.", events: "Events", noEvents: "No events.", connected: "connected", notConnected: "away", lastSeen: "Last seen", created: "Since", epoch: "epoch", upToDate: "has everything", behindBy: (n) => `${n} to come`,
  offset: "No.", type: "Type", source: "Source", recorded: "Committed", delivered: "Delivered", seen: "Seen", erased: "erased", open: "Way", openOf: (n) => `The way of event ${n}`, back: "All events", way: (n) => `The way of event ${n}`, whole: (text) => `${text} in all`, stageUnknown: "done, the time is not kept", modes: { full: "everything at once", saver: "traffic saving" }, stageWaits: "not yet", unknownEvent: (n) => [`There is no event ${n}`, "It has not come yet, or retention has removed it."],
  stages: { created: "Happened at the agency", signed: "Signed by the agency", verified: "Signature verified", committed: "Committed to disk", published: "Given to the bus", written: "Written to a socket", delivered: "Acknowledged by a device", seen: "Shown to the person" },
  deviceStates: { acknowledged: "acknowledged", written: "sent, not acknowledged yet", waiting: "waits for its turn", away: "away" },
  audits: "Who looked", noAudits: "Nobody has looked at anything yet.", actions: { account: "account", event: "event" }, operator: "Operator", what: "What", from: "From",
  milliseconds: "ms", seconds: "s", minute: "min", hour: "h", day: "d", bytes: ["B", "KB", "MB", "GB", "TB"],
};

const BOTH = { ru: RU, en: EN };
export let words = BOTH[language] ?? RU;
export { language };

export function changeLanguage() {
  switchLanguage();
  words = BOTH[language];
}

/** A number with as many places as matter; "–" for none. */
export function number(value) {
  if (value == null) return "–";
  const places = value !== 0 && Math.abs(value) < 10 ? (Math.abs(value) < 1 ? 2 : 1) : 0;
  if (Math.abs(value) >= 1e6) return new Intl.NumberFormat(language, { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  return new Intl.NumberFormat(language, { maximumFractionDigits: places }).format(value);
}

/** Seconds, from tenths of a millisecond to days, in the largest unit that fits. */
export function duration(seconds) {
  if (seconds == null) return "–";
  const round = (value) => new Intl.NumberFormat(language, { maximumSignificantDigits: value >= 100 ? 3 : 2 }).format(value);
  if (seconds <= 0) return `0 ${words.milliseconds}`;
  if (seconds < 0.9995) return `${round(seconds * 1000)} ${words.milliseconds}`;
  if (seconds < 59.5) return `${round(seconds)} ${words.seconds}`;
  if (seconds < 3570) return `${round(seconds / 60)} ${words.minute}`;
  if (seconds < 35 * 3600) return `${round(seconds / 3600)} ${words.hour}`;
  return `${round(seconds / 86400)} ${words.day}`;
}

export function size(bytes) {
  if (bytes == null) return "–";
  const power = bytes < 1 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10));
  return `${new Intl.NumberFormat(language, { maximumSignificantDigits: 3 }).format(bytes / 1024 ** power)} ${words.bytes[power]}`;
}

export function percent(part) {
  if (part == null) return "–";
  const places = part > 0.9 && part < 1 ? 2 : part > 0 && part < 0.1 ? 1 : 0;
  // Rounded down: 99.996 % is not all.
  const value = Math.floor(part * 100 * 10 ** places) / 10 ** places;
  return `${new Intl.NumberFormat(language, { maximumFractionDigits: places }).format(value)} %`;
}

/** A value of an alert in its unit. */
export function measured(value, unit) {
  if (unit === "s") return duration(value);
  if (unit === "bytes") return size(value);
  return unit === "%" ? `${number(value)} %` : `${number(value)}${unit === "1/s" ? words.perSecond : unit ? ` ${unit}` : ""}`;
}

/** The time of day; `short` without seconds. */
export function clock(time, short = false) {
  return new Intl.DateTimeFormat(language, { hourCycle: "h23", hour: "2-digit", minute: "2-digit", ...(short ? {} : { second: "2-digit" }) }).format(time);
}

/** A moment, with its day when that is not today; `exact` to a thousandth of a second. */
export function when(text, exact = false) {
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return text;
  const today = moment.toDateString() === new Date().toDateString();
  const day = today ? {} : { day: "2-digit", month: "2-digit", year: "numeric" };
  const part = exact ? { fractionalSecondDigits: 3 } : {};
  return new Intl.DateTimeFormat(language, { hourCycle: "h23", ...day, hour: "2-digit", minute: "2-digit", second: "2-digit", ...part }).format(moment);
}
